"""What setup.cfg cannot say: the recipes of `configs/` are part of the package, below it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mlic_jax*", "weight_conversion*"]), "mlic_jax.configs"],
    package_dir={"mlic_jax.configs": "configs"},
)
