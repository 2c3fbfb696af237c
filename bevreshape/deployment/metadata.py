"""Describe a program's inputs and outputs; the description is stored inside it."""

from typing import Any

from bevreshape import __version__
from bevreshape.bev_spec import BEVSpec
from bevreshape.data.image_io import resize_and_crop_intrinsics
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.deployment.preprocess import FORMAT, fitting


def describe_program(spec: BEVSpec) -> str:
    """Describe the inputs and outputs of an exported program in readable form."""
    height, width = spec.image_size
    return (
        f"image: {', '.join(spec.camera_names)}, in this order, "
        f"{'grey in each channel' if spec.image_mode == 'grey' else 'RGB'} in 0..1, {height}×{width}, as predict makes "
        "them: resized to cover it, then cut at the top and evenly at the sides, intrinsics moved "
        f"along\nprobabilities: {', '.join(spec.classes)} on {spec.grid.rows}×{spec.grid.cols} cells, row 0 farthest "
        "ahead, column 0 farthest left"
    )


def metadata(spec: BEVSpec, rig: Rig | None = None) -> dict[str, Any]:
    """Describe a program as plain values, which :mod:`bevreshape.deployment.preprocess` reads.

    Args:
        spec: of the model.
        rig: the cameras of a fixed rig, for the images as stored, in the model's order.
    """
    (height, width), n, (rows, cols) = spec.image_size, len(spec.camera_names), spec.grid.shape
    pixels = {
        "shape": ["batch", n, 3, height, width],
        "channels": ["grey"] * 3 if spec.image_mode == "grey" else ["R", "G", "B"],
        "range": [0, 1],
    }
    inputs: dict[str, Any] = {"image": {**pixels, "dtype": "float32"}}
    if rig is None:
        inputs["intrinsics"] = {"shape": ["batch", n, 3, 3], "dtype": "float32"}
        inputs["ego_from_cam"] = {"shape": ["batch", n, 4, 4], "dtype": "float32"}
    probabilities = {"shape": ["batch", len(spec.classes), rows, cols], "range": [0, 1], "dtype": "float32"}
    return {
        "format": FORMAT,
        "version": __version__,
        **spec.to_plain(),
        "inputs": inputs,
        "outputs": {"probabilities": probabilities},
        "cameras": None if rig is None else [_described_camera(spec, rig, i) for i in range(n)],
        "conventions": CONVENTIONS,
    }


CONVENTIONS = {
    "resize": "bilinear, antialiased, by the larger of the two ratios, so that image_size is covered; then rows are "
    "cut at the "
    "top and columns evenly at both sides",
    "distortion": "undone on the way, bilinear; coefficients are in OpenCV's order",
    "pixels": "integers are pixel centres, u to the right, v down",
    "intrinsics": "pixel_from_cam of the image as the program takes it; camera axes x right, y down, z forward",
    "ego_from_cam": "metres; ego axes x forward, y left, z up, the ground at z = 0",
    "cameras": "in the order of camera_names",
    "classes": "in the order of classes, each a probability of its own",
    "grid": "row 0 farthest ahead, column 0 farthest left; forward_m and left_m are the outer edges",
}
"""Conventions of the metadata and of the program's inputs."""


def _described_camera(spec: BEVSpec, rig: Rig, number: int) -> dict[str, Any]:
    stored, distortion = rig.sizes[number], rig.distortions[number]
    resized, top, left = fitting(stored, spec.image_size)
    return {
        "name": spec.camera_names[number],
        "image_size": list(stored),
        "intrinsics": rig.stored_intrinsics(number).tolist(),
        "distortion": None
        if distortion is None
        else {
            "model": distortion.model,
            "coefficients": list(distortion.coefficients),
            "intrinsics": rig.intrinsics[number].tolist(),
        },
        "resized_size": list(resized),
        "crop_top_left": [top, left],
        "fitted_intrinsics": resize_and_crop_intrinsics(rig.intrinsics[number], stored, spec.image_size).tolist(),
        "ego_from_cam": rig.ego_from_cam[number].tolist(),
    }
