"""Sums over virtual workers in one order: a binary tree by their number, whatever ranks they run
on.

Floating-point addition is not associative, and the all-reduces of gloo and NCCL add in orders of
their own, which change with the number of ranks. Here each virtual worker is a leaf; neighbours are
added first. A rank runs a block of neighbours, so that for powers of two its own sum is a subtree,
and the rest of the tree is recursive doubling between ranks (Thakur, Rabenseifner and Gropp 2005,
section 4.5): log2 of their number in messages. For other numbers all leaves are gathered, and every
rank adds them."""

from collections.abc import Iterable

import torch

from dist_resnet.runtime.distributed import World


class BinaryTree:
    """Adds tensors, in place, in the order of a binary tree; keeps log2(leaves) + 1 of them at
    most.

    Where their number is no power of two, the subtrees left over are added from the right."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, torch.Tensor]] = []  # (height, sum), the highest first
        self.free: list[torch.Tensor] = []  # no longer needed

    def add(self, leaf: torch.Tensor) -> None:
        height = 0
        while self._subtrees and self._subtrees[-1][0] == height:
            leaf = self._joined(leaf)
            height += 1
        self._subtrees.append((height, leaf))

    def total(self) -> torch.Tensor:
        """The sum of all leaves since the last time."""
        _, right = self._subtrees.pop()
        while self._subtrees:
            right = self._joined(right)
        return right

    def _joined(self, right: torch.Tensor) -> torch.Tensor:
        _, left = self._subtrees.pop()
        self.free.append(right)
        return left.add_(right)


def tree_sum(leaves: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum, in the tree's order. Overwrites the leaves."""
    tree = BinaryTree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.total()


class OrderedSum:
    """Sums one-dimensional float32 tensors of all virtual workers: this rank's, one after the
    other, then all ranks'. Every rank has the same bits, for any number of ranks that divides
    theirs."""

    def __init__(self, size: int, parts: int, world: World) -> None:
        self.size, self.world = size, world
        everyone = parts * world.size
        self.doubling = everyone & (everyone - 1) == 0
        self._tree = BinaryTree()
        self._leaves: list[torch.Tensor] = []
        theirs = size if self.doubling and world.size > 1 else 0
        self._theirs = torch.empty(theirs, device=world.device)  # what arrives from another rank

    def buffer(self) -> torch.Tensor:
        """One to fill and to `add`."""
        free = self._tree.free
        return free.pop() if free else torch.empty(self.size, device=self.world.device)

    def add(self, leaf: torch.Tensor) -> None:
        if self.doubling:
            self._tree.add(leaf)
        else:
            self._leaves.append(leaf)

    def local(self) -> torch.Tensor:
        """This rank's sum alone; overwritten by the next one."""
        for leaf in self._leaves:
            self._tree.add(leaf)
        self._leaves.clear()
        mine = self._tree.total()
        self._tree.free.append(mine)
        return mine

    def total(self) -> torch.Tensor:
        """Over all ranks, which must all call; overwritten by the next one."""
        if self.doubling:
            return self._doubled(self.local())
        everyones = self.world.stack(torch.stack(self._leaves)).view(-1, self.size)
        self._tree.free += self._leaves
        self._leaves.clear()
        return tree_sum(everyones.unbind())

    def _doubled(self, mine: torch.Tensor) -> torch.Tensor:
        distance = 1
        while distance < self.world.size:
            self.world.exchange(mine, self._theirs, self.world.rank ^ distance)
            mine.add_(self._theirs)
            distance *= 2
        return mine
