"""Padding: carried out of a larger module; to be described."""

from torch import Tensor, nn


class SamePaddedConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does: where the total is odd, right and bottom get one more.

    Weights trained that way and padded evenly see everything half a step aside: a linear probe on TrashNet loses two
    points by it. In ONNX the padding becomes the convolution's own and costs nothing.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch names it so
        pads: list[int] = []
        for side, size, step, apart in zip(
            reversed(input.shape[2:]),
            reversed(self.kernel_size),
            reversed(self.stride),
            reversed(self.dilation),
            strict=True,
        ):
            total = max((-(-side // step) - 1) * step + (size - 1) * apart + 1 - side, 0)
            pads += [total // 2, total - total // 2]
        padded = nn.functional.pad(input, pads)
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _padded(child: nn.Conv2d) -> SamePaddedConv2d:
    made = SamePaddedConv2d(
        child.in_channels, child.out_channels, child.kernel_size, child.stride, 0, child.dilation, child.groups,  # type: ignore[arg-type]
        child.bias is not None,
    )  # fmt: skip
    made.load_state_dict(child.state_dict())
    return made
