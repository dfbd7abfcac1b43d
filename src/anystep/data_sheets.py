"""Devices by name, and what their makers say of them; without PyTorch, as the command line lists the names."""

from dataclasses import dataclass

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class DeviceKind:
    """From the maker's data sheet.

    Attributes:
        flops: dense operations a second with bfloat16 inputs.
        memory: bytes.
        link: bytes a second in one direction to the others of its machine.
        network: bytes a second in one direction to other machines, of the adapter that one device has in the maker's
            own machine of eight.
    """

    flops: float
    memory: float
    link: float
    network: float | None = None


# by part of the name that the device gives itself
DEVICES = {
    "B200": DeviceKind(2250e12, 180e9, 900e9, 50e9),
    "H200": DeviceKind(989e12, 141e9, 450e9, 50e9),
    "H100": DeviceKind(989e12, 80e9, 450e9, 50e9),
    "A100": DeviceKind(312e12, 80e9, 300e9, 25e9),
    "L40S": DeviceKind(362e12, 48e9, 32e9),
    "4090": DeviceKind(165e12, 24e9, 32e9),
}
UTILISATION = 0.4  # of the data sheet's rate that work reaches, where nobody says


def device_kind(name: str) -> DeviceKind | None:
    """Of a device by its name, where it is known."""
    return next((kind for part, kind in DEVICES.items() if part in name.upper()), None)
