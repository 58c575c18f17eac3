"""What must be known of trained weights to use them: it travels with them, in checkpoints and
exports alike."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dist_resnet.config import FAMILIES, Config, Model
from dist_resnet.data.manifest import Manifest

VERSION = 1  # one more where a field is added; it needs a default then, so that old cards are read


@dataclass(frozen=True)
class Card:
    model: dict[str, Any]  # the settings of its section in the configuration
    dataset: str
    classes: list[str]  # by label
    mean: list[float]  # of each colour of the training images, in [0, 1]
    std: list[float]
    size: list[int]  # height and width of the images that it is evaluated on
    share: float  # part of an image's shorter side that is cut out for that
    tta: str  # which views of an image it is evaluated on: train.eval_tta
    version: int = 1  # VERSION of the code that wrote it

    @classmethod
    def of(cls, config: Config, betons: Manifest) -> "Card":
        """Of the network that a configuration trains on these betons."""
        data, size = config.data, config.data.eval_resolution or config.data.resolution
        assert size or betons.shape  # else there was nothing to train on
        return cls(
            model=config.to_dict()["model"],
            dataset=betons.dataset,
            classes=betons.classes,
            mean=betons.mean,
            std=betons.std,
            size=[size, size] if size else list((betons.shape or [])[:2]),
            share=data.eval_share if size else 1.0,
            tta=config.train.eval_tta,
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Card":
        """Raises ValueError where fields are missing or unknown."""
        if content.get("version", 1) > VERSION:
            raise ValueError(
                f"its card is of version {content['version']}, and this dist_resnet reads up to "
                f"{VERSION}: update it"
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"its card is of another version ({error})") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return dataclasses.asdict(self)

    def settings(self) -> Model:
        """Of the network. Raises ValueError for a family or keys that this version has not."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.model.items()
        }
        try:
            return FAMILIES[values["family"]](**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its network is of another version ({error})") from None
