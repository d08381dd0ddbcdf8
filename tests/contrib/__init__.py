"""Tests of what lies in contrib/."""
