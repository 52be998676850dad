"""What pyproject.toml cannot say: configs/ at the root travels in the wheel as ``video_rs.configs``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["video_rs", "video_rs.*"]), "video_rs.configs"],
    package_dir={"video_rs.configs": "configs"},
    package_data={
        "video_rs": ["py.typed"],
        "video_rs.configs": ["*.yaml"],
        "video_rs.evaluation": ["*.j2"],
        "video_rs.inference": ["*.j2"],
        "video_rs.models": ["*.csv"],
        "video_rs.models.adapters": ["*.csv"],
    },
)
