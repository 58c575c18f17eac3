"""A whole configuration: its sections, what must fit between them, and how it is told from another.

A configuration is a YAML file of sections plus dotted overrides (`--optim.lr 0.2`). A key works or
raises: unknown keys, wrong types and values out of range are ValueErrors that name the key, the
value
and what would be valid. The defaults are the CIFAR-10 recipe of He et al. 2015 (section 4.2).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dist_resnet.config.data import Batch, Data
from dist_resnet.config.model import CifarModel, Model
from dist_resnet.config.recipe import Optim, Scaling, Schedule
from dist_resnet.config.section import Section, key_of, require
from dist_resnet.config.training import Tracking, Train

Nested = dict[str, dict[str, Any]]  # section -> key -> value, as YAML has them


@dataclass(frozen=True)
class Config:
    """One field a section, each frozen. `config_file.load` makes it."""

    model: Model = CifarModel()
    data: Data = Data()
    batch: Batch = Batch(per_worker=128)
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    scaling: Scaling = Scaling()
    train: Train = Train()
    tracking: Tracking = Tracking()

    def __post_init__(self) -> None:
        require(
            not self.train.activation_checkpointing or self.model.family == "cifar",
            "train.activation_checkpointing",
            True,
            "is for family cifar only; leave it out",
        )
        one_size = self.data.min_resolution is None
        require(
            self.train.cuda_graph is not True
            or (self.optim.name == "sgd" and one_size and not self._takes_buckets()),
            "train.cuda_graph",
            True,
            "needs optim.name sgd, images of one size throughout (no data.min_resolution), and "
            "--train.all_reduce flat, or auto without train.static_graph and "
            "batch.virtual_workers",
        )

        require(
            self.train.precision != "fp16" or self.optim.name in ("sgd", "adam", "adamw"),
            "optim.name",
            self.optim.name,
            "would wait for the gradient scaler in every step; use --train.precision bf16",
        )
        require(
            self.train.final_split != self.data.evaluate_on,
            "train.final_split",
            self.train.final_split,
            "is data.evaluate_on already; leave it out, or set --data.evaluate_on val",
        )
        virtual, train = self.batch.virtual_workers is not None, self.train
        require(
            virtual or train.all_reduce != "ordered",
            "train.all_reduce",
            "ordered",
            "is the order of virtual workers; set --batch.virtual_workers too",
        )
        if virtual:
            self._need(
                "does not go with batch.virtual_workers, whose gradients are summed by us, in "
                "fp32; leave one of them out",
                all_reduce=train.all_reduce in ("auto", "flat", "ordered"),
                static_graph=not train.static_graph,
                gradient_type=train.gradient_type == "fp32",
            )
        if self.drops_blocks:
            self._need(
                "needs the same network in every step; leave it out, or model.stochastic_depth",
                all_reduce=train.all_reduce != "buckets",
                static_graph=not train.static_graph,
                compile=train.compile == "none",
                cuda_graph=train.cuda_graph is not True,
            )

    def _need(self, remedy: str, **fits: bool) -> None:
        """Keys of section train, and whether they fit."""
        for name, fit in fits.items():
            require(fit, f"train.{name}", getattr(self.train, name), remedy)

    @property
    def drops_blocks(self) -> bool:
        """Whether steps leave out parts of the network."""
        return isinstance(self.model, CifarModel) and self.model.stochastic_depth > 0

    def _takes_buckets(self) -> bool:
        """Whether `train.all_reduce: auto` cannot be flat."""
        train = self.train
        return train.all_reduce == "auto" and (
            train.static_graph or self.batch.virtual_workers is not None
        )

    def sections(self) -> Iterator[tuple[str, Section]]:
        for field in dataclasses.fields(self):
            yield field.name, getattr(self, field.name)

    def to_dict(self) -> Nested:
        """Plain nested values, as the YAML file has them."""
        return {
            name: {
                key_of(field): _plain(getattr(section, field.name))
                for field in dataclasses.fields(section)
            }
            for name, section in self.sections()
        }

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value."""
        return _flat(self.to_dict())

    def may_change(self) -> set[str]:
        """The dotted keys that any start of a run may change: `run_setting`s. Where optim.lookahead
        aims at the last step, train.max_steps is none of them."""
        keys = {
            f"{name}.{key_of(field)}"
            for name, section in self.sections()
            for field in dataclasses.fields(section)
            if field.metadata["may_change"]
        }
        return keys - {"train.max_steps"} if self.optim.lookahead else keys

    def digest(self) -> str:
        """Sixteen hex digits of what the run gives: equal where only keys of `may_change`
        differ."""
        free = self.may_change()
        text = json.dumps({key: v for key, v in self.flat().items() if key not in free})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))


def _flat(nested: Nested) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in nested.items()
        for key, value in values.items()
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def differences(a: Config | Nested, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in a, value in b), where they differ; None where the other family has no
    such key. a: also as `to_dict` gives it."""
    left, right = _flat(a.to_dict() if isinstance(a, Config) else a), b.flat()
    keys = dict.fromkeys([*left, *right])
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}
