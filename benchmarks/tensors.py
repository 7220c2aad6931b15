"""The tensors that works are done on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Shape = tuple[int, ...]


def resnet50() -> tuple[Shape, ...]:
    """The shapes of ResNet-50's 161 parameters (He et al. 2015, arXiv 1512.03385)."""
    shapes: list[Shape] = []

    def convolution(out: int, into: int, kernel: int) -> None:
        shapes.extend([(out, into, kernel, kernel), (out,), (out,)])  # with its batch norm

    convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(width, into, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, into, 1)
            into = 4 * width
    return (*shapes, (1000, into), (1000,))


def transformer(layers: int = 4, width: int = 512) -> tuple[Shape, ...]:
    """The shapes of a transformer's layers (Vaswani et al. 2017, arXiv 1706.03762)."""
    layer: tuple[Shape, ...] = (
        *((3 * width, width), (3 * width,)),
        *((width, width), (width,)),
        *((4 * width, width), (4 * width,)),
        *((width, 4 * width), (width,)),
        *((width,), (width,)),  # of a layer norm
    )
    return layer * layers


RESNET50 = resnet50()
TRANSFORMER = transformer()
MLP: tuple[Shape, ...] = ((512, 784), (512,), (512, 512), (512,), (10, 512), (10,))
IMAGES: dict[str, tuple[Shape, ...]] = {
    "200 images of 8x8": ((200, 1, 8, 8),),
    "128 of 3x32x32": ((128, 3, 32, 32),),
    "8 of 3x224x224": ((8, 3, 224, 224),),
}
MILLION: tuple[Shape, ...] = ((1, 1_000_000),)
THOUSAND: tuple[Shape, ...] = ((100,),) * 1000
TEN: tuple[Shape, ...] = ((10,),)


def elements(shapes: Sequence[Shape]) -> int:
    """How many elements they have together."""
    return sum(torch.Size(shape).numel() for shape in shapes)


assert (len(RESNET50), elements(RESNET50)) == (161, 25_557_032)


def normal(shapes: Sequence[Shape], seed: int = 0, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device) for shape in shapes]


def _with_zeros(x: Tensor, fraction: float, value: float = 0.0) -> Tensor:
    chance = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    return x.masked_fill_(chance < fraction, value)


# What defeats quickselect.
HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "50% zeros": lambda x: _with_zeros(x, 0.5),
    "90% zeros": lambda x: _with_zeros(x, 0.9),
    "99% zeros": lambda x: _with_zeros(x, 0.99),
    "90% one value": lambda x: _with_zeros(x, 0.9, 0.5),
    "sorted": lambda x: x.abs_().sort().values,
    "reversed": lambda x: x.abs_().sort(descending=True).values,
    "constant": lambda x: x.fill_(1.5),
    "plus and minus 1": lambda x: x.sign_(),
    "10% NaN": lambda x: _with_zeros(x, 0.1, torch.nan),
    "denormal": lambda x: x.mul_(1e-40),
    "one bfloat16 key": lambda x: x.abs_().mul_(1e-4).add_(1.0),
}
