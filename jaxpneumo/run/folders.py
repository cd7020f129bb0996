"""Where the parts of a run lie in its folder."""

from pathlib import Path


def final_directory(stage_directory: Path) -> Path:
    """Where a stage's result lies once it is complete."""
    return (stage_directory / "final").absolute()
