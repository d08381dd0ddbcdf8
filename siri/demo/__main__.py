"""`python -m siri.demo`: make the demo's data and base model."""

from siri.demo.warmup import main

if __name__ == "__main__":
    main()
