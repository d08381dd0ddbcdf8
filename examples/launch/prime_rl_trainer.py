"""prime-rl's trainer with the fused head: what `prime_rl.trainer.rl.train` does as a module, with `install()` before
it. `prime_rl_math.sh` starts it in the place of that module."""

from siri_kernels.integrations import prime_rl

prime_rl.install()

if __name__ == "__main__":
    from prime_rl.trainer.rl.train import main

    main()
