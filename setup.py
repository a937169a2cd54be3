"""Build entry point for tools that call it by name; all metadata is in pyproject.toml."""

from setuptools import setup

setup()
