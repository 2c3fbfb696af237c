"""Time our view transformers and the published code in turn, in one process, at published shapes.

Clone the repositories of ``ORIGINALS`` below into one folder, then

    python tools/time_originals.py --clones CLONES
    python tools/time_originals.py --clones CLONES --only PON VPN --rounds 15
    python tools/time_originals.py --clones CLONES --device cuda   # float32, bfloat16, eager, compiled, floors

Only the compared classes are read from the clones, at the named commit, and run unchanged.
"""

import ast
import copy
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import einops
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from bevreshape.analysis.benchmark import AUTOCAST
from bevreshape.analysis.costs import Form, Workload, measure, ring
from bevreshape.config.arguments import Parser, integer
from bevreshape.console import print_line, run_script
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.ops.sampling import Positions, Taps, sample_features
from bevreshape.reporting.benchmark import floor_table
from bevreshape.reporting.progress import track
from bevreshape.reporting.tables import print_table
from bevreshape.reshapers import (
    MLP,
    Bilinear,
    ColumnMLP,
    CrossViewAttention,
    FeatureShape,
    FixedRig,
    GeometricReshaper,
    KernelAttention,
    LiftSplat,
    Reshaper,
)
from bevreshape.training.hardware import read_device
from bevreshape.training.rehearsal import of_compiler

ORIGINALS = {
    "cross_view_transformers": ("bradyz", "4de6e64"),
    "GKT": ("hustvl", "104c27f"),
    "lift-splat-shoot": ("nv-tlabs", "d74598c"),
    "simple_bev": ("aharley", "be46f0e"),
    "View-Parsing-Network": ("pbw-Berwin", "9ccfcce"),
    "mono-semantic-maps": ("tom-roddick", "f6b0f52"),
    "HDMapNet": ("Tsinghua-MARS-Lab", "7911227"),
}
"""Repository: owner, commit."""

FORMS: tuple[Form, ...] = ("eager", "compiled")

GRID = BEVGrid((-50.0, 50.0), (-50.0, 50.0), 0.5)
"""100 m × 100 m, 200×200."""


class Original(nn.Module):
    """Wrap a published module with the interface of ours."""

    def __init__(self, module: nn.Module, call: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, features: Any, cameras: Cameras) -> Tensor:
        return self.call(features, cameras)


@dataclass(frozen=True)
class Pair:
    """Hold one comparison; features are those of a sample, a tuple with several scales."""

    title: str
    original: Original
    ours: Reshaper
    features: Tensor | tuple[Tensor, ...]
    cameras: Cameras


def definitions(clones: Path, repository: str, *paths: str, **given: Any) -> SimpleNamespace:
    """Load functions and classes of a repository's files, without their imports.

    Args:
        clones: folder of the clones.
        repository: its name.
        paths: files in it.
        given: further imports of the files, in addition to torch, numpy, einops and math.

    Raises:
        InputError: when the clone or its commit is missing.
    """
    owner, commit = ORIGINALS[repository]
    names: dict[str, Any] = {
        "torch": torch, "nn": nn, "F": F, "np": np, "math": math, "Bottleneck": Bottleneck, "List": list,
        "rearrange": einops.rearrange, "repeat": einops.repeat, "EPS": 1e-6, **given,
    }  # fmt: skip
    for path in paths:
        show = ["git", "-C", str(clones / repository), "show", f"{commit}:{path}"]
        found = subprocess.run(show, capture_output=True, text=True, check=False)
        if found.returncode:
            raise InputError(
                f"{clones / repository}: {path} at commit {commit} cannot be read; git clone "
                f"https://github.com/{owner}/{repository} there"
            )
        kept: list[ast.stmt] = [
            node for node in ast.parse(found.stdout).body if isinstance(node, ast.ClassDef | ast.FunctionDef)
        ]
        exec(compile(ast.Module(kept, []), path, "exec"), names)
    return SimpleNamespace(**names)


def cross_view(clones: Path, channels: int, height: int, width: int, stride: int) -> Pair:
    """Pair one scale of CVT: 6 cameras to 25×25, dim 128, 4 heads of 32."""
    code = definitions(clones, "cross_view_transformers", "cross_view_transformer/model/encoder.py")
    layer = code.CrossViewAttention(height, width, channels, 128, 224, 480, qkv_bias=True)
    cells = code.BEVEmbedding(128, 1.0, 200, 200, 100.0, 100.0, 0.0, [1, 1, 1])

    def call(features: Tensor, cameras: Cameras) -> Tensor:
        prior = cells.get_prior()[None]
        return layer(prior, cells, features, cameras.intrinsics.inverse(), cameras.ego_from_cam)

    source = FeatureShape(channels, height, width, 6, stride, (stride - 1) / 2)
    ours = CrossViewAttention(source, GRID.coarsen(8), dim=128, dim_head=32, middle=0)
    return pair(f"CVT, 6 × {height}×{width}×{channels}", nn.ModuleList([layer, cells]), call, ours)


def kernel(clones: Path, channels: int, height: int, width: int, stride: int) -> Pair:
    """Pair one scale of GKT: 6 cameras to 25×25, dim 128, windows of 7×1 after a convolution of 1×7."""
    code = definitions(
        clones, "GKT", "segmentation/cross_view_transformer/model/geometry_kernel_transformer_encoder.py"
    )
    layer = code.GeometryKernelAttention(height, width, channels, 128, 1.0, 7, 1, 224, 480, qkv_bias=True)
    cells = code.BEVEmbedding(128, 1.0, 200, 200, 100.0, 100.0, 0.0, [1, 1, 1])

    def call(features: Tensor, cameras: Cameras) -> Tensor:
        k, e = cameras.intrinsics, cameras.ego_from_cam.inverse()
        return layer(cells.get_prior()[None], cells, features, k.inverse(), cameras.ego_from_cam, k, e)

    source = FeatureShape(channels, height, width, 6, stride, (stride - 1) / 2)
    ours = KernelAttention(source, GRID.coarsen(8), dim=128, bottlenecks=0)
    return pair(f"GKT, 6 × {height}×{width}×{channels}", nn.ModuleList([layer, cells]), call, ours)


def lift_splat(clones: Path) -> Pair:
    """Pair LSS from the trunk's features on: depth and context by a 1×1 convolution, geometry, pooling."""
    tools = definitions(clones, "lift-splat-shoot", "src/tools.py", torchvision=_Torchvision)
    code = definitions(
        clones,
        "lift-splat-shoot",
        "src/models.py",
        gen_dx_bx=tools.gen_dx_bx,
        cumsum_trick=tools.cumsum_trick,
        QuickCumsum=tools.QuickCumsum,
    )

    encode, model = (kind.__new__(kind) for kind in (code.CamEncode, code.LiftSplatShoot))
    for module in (encode, model):  # without their trunks, which belong to the encoder
        nn.Module.__init__(module)
    encode.D, encode.C, encode.depthnet = 41, 64, nn.Conv2d(64, 41 + 64, 1)
    vars(encode)["get_eff_depth"] = nn.Identity()
    model.grid_conf = {
        "xbound": [-50, 50, 0.5],
        "ybound": [-50, 50, 0.5],
        "zbound": [-10, 10, 20],
        "dbound": [4, 45, 1],
    }
    model.data_aug_conf = {"final_dim": (128, 352)}
    steps = tools.gen_dx_bx(*(model.grid_conf[f"{axis}bound"] for axis in "xyz"))
    model.dx, model.bx, model.nx = (nn.Parameter(x, requires_grad=False) for x in steps)
    model.downsample, model.camC, model.D, model.use_quickcumsum = 16, 64, 41, True
    model.frustum = model.create_frustum()
    model.camencode = encode

    def call(features: Tensor, cameras: Cameras) -> Tensor:
        rotation, place = cameras.ego_from_cam[..., :3, :3], cameras.ego_from_cam[..., :3, 3]
        unchanged, unmoved = torch.eye(3, device=place.device).expand_as(rotation), torch.zeros_like(place)
        points = model.get_geometry(rotation, place, cameras.intrinsics, unchanged, unmoved)
        lifted = model.camencode(features.flatten(0, 1)).unflatten(0, features.shape[:2])  # b n c D h w
        return model.voxel_pooling(points, lifted.permute(0, 1, 3, 4, 5, 2))

    ours = LiftSplat(FeatureShape(64, 8, 22, 6, 16, 7.5), GRID, depths_m=[4, 45, 1], channels=64)
    return pair("LSS, 6 × 8×22×64, 41 depths", model, call, ours)


def simple_bev(clones: Path) -> Pair:
    """Pair Simple-BEV's sampling of 200×8×200 points and mean over the cameras, without the convolution after it."""
    utils = SimpleNamespace()
    for name in ("basic", "geom", "vox"):
        setattr(utils, name, definitions(clones, "simple_bev", f"utils/{name}.py", utils=utils))
    shape = (200, 8, 200)
    voxels = utils.vox.Vox_util(*shape, torch.tensor([[0.0, 1.0, 0.0]]), [-50, 50, -5, 5, -50, 50])
    for bound in ("XMIN", "XMAX", "YMIN", "YMAX", "ZMIN", "ZMAX"):
        setattr(voxels, bound, float(getattr(voxels, bound)))  # numpy scalars do not fit in today's torch.tensor
    # its sampling frame: x right, y down, z forward, at the vehicle
    ego_from_ref = torch.tensor([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    device = ego_from_ref.device  # the default one
    cells = utils.basic.gridcloud3d(1, *shape, norm=False, device=device)
    points = utils.geom.apply_4x4(voxels.get_ref_T_mem(1, *shape, device=device), cells)

    def call(features: Tensor, cameras: Cameras) -> Tensor:
        features, n = features[0], features.shape[1]
        intrinsics = torch.eye(4, device=device).repeat(n, 1, 1)
        intrinsics[:, :3, :3] = cameras.intrinsics[0]
        height, width = cameras.image_size
        scaled = utils.geom.scale_intrinsics(intrinsics, features.shape[-1] / width, features.shape[-2] / height)
        cam_from_ref = cameras.cam_from_ego[0] @ ego_from_ref
        pixel_from_ref = utils.basic.matmul2(scaled, cam_from_ref)
        volume = voxels.unproject_image_to_mem(
            features, pixel_from_ref, cam_from_ref, *shape, xyz_camA=points.repeat(n, 1, 1)
        )[None]
        return utils.basic.reduce_masked_mean(volume, (volume.abs() > 0).float(), dim=1)

    ours = Sampling(FeatureShape(128, 28, 60, 6, 8, 3.5), GRID, heights=8, height_m=(-6.0, 4.0))
    return pair("Simple-BEV, 6 × 28×60×128 → 200×8×200", nn.Module(), call, ours)


class Sampling(Bilinear):
    """Sample bilinearly, without reducing the volume."""

    def gather(self, features: Tensor, located: Positions | Taps) -> Tensor:
        return sample_features(features, located)  # b (R C k) c


def parsing(clones: Path) -> Pair:
    """Pair VPN: six views of 25×25 by an MLP each, summed."""
    code = definitions(clones, "View-Parsing-Network", "models.py")
    module = code.TransformModule(25, 6)

    def call(features: Tensor, cameras: Cameras) -> Tensor:
        if not torch.is_grad_enabled():
            return module(features.clone())
        # its sum in place fails in autograd
        b, n, c, h, w = features.shape
        return sum(module.mat_list[i](features[:, i].flatten(2)) for i in range(n)).view(b, c, h, w)

    ours = MLP(FeatureShape(256, 25, 25, 6), (25, 25), hidden=[625])
    return pair("VPN, 6 × 25×25×256", module, call, ours)


def pyramid(clones: Path) -> Pair:
    """Pair PON: five scales of a 600×800 image to 1 to 50 m at 0.5 m."""
    files = (f"src/nn/{name}.py" for name in ("resampler", "transformer", "pyramid"))
    code = definitions(clones, "mono-semantic-maps", *files)
    module = code.TransformerPyramid(256, 64, 0.5, [-25.0, 1.0, 25.0, 50.0], -2, 4, 630.0)

    def call(features: tuple[Tensor, ...], cameras: Cameras) -> Tensor:
        return module([scale[:, 0] for scale in features], cameras.intrinsics[:, 0])

    sources = [
        FeatureShape(256, *shape, stride=2**i, offset_px=(2**i - 1) / 2)
        for i, shape in enumerate([(75, 100), (38, 50), (19, 25), (10, 13), (5, 7)], start=3)
    ]
    ours = ColumnMLP(
        sources,
        BEVGrid((1.0, 50.0), (-25.0, 25.0), 0.5),
        dim=64,
        depth_m=(1, 4.5, 9.5, 19.5, 39, 50),
        rows=(13, 13, 13, 14, 30),
    )
    intrinsics = torch.tensor([[633.0, 0, 399.5], [0, 633, 299.5], [0, 0, 1]])
    pose = torch.tensor([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    return pair(
        "PON, five scales of 256", module, call, ours, Cameras(intrinsics[None, None], pose[None, None], (600, 800))
    )


def views(clones: Path) -> Pair:
    """Pair HDMapNet: six views of 8×22 by two layers each."""
    code = definitions(clones, "HDMapNet", "model/hdmapnet.py")
    module = code.ViewTransformation((8, 22), (40, 80))
    ours = PerCamera(FeatureShape(64, 8, 22, 6), (40, 80), hidden=[3200])
    return pair("HDMapNet, 6 × 8×22×64 → 40×80", module, lambda features, cameras: module(features), ours)


class PerCamera(MLP):
    """Apply the MLP without its sum over the cameras, as in HDMapNet."""

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        return self.per_camera(features)


class _Torchvision:
    """Stand-in for an import of src/tools.py of LSS, for a class that is not used here."""

    class transforms:  # noqa: N801
        Normalize = object


PAIRS: dict[str, Callable[[Path], Pair]] = {
    "CVT-4": lambda clones: cross_view(clones, 32, 56, 120, 4),
    "CVT-16": lambda clones: cross_view(clones, 160, 14, 30, 16),
    "GKT-4": lambda clones: kernel(clones, 32, 56, 120, 4),
    "GKT-16": lambda clones: kernel(clones, 160, 14, 30, 16),
    "LSS": lift_splat,
    "SimpleBEV": simple_bev,
    "VPN": parsing,
    "PON": pyramid,
    "HDMapNet": views,
}


def pair(title: str, module: nn.Module, call: Callable, ours: Reshaper, cameras: Cameras | None = None) -> Pair:
    """Return features for ours, a matching rig, and both modules, on the default device."""
    source = ours.source
    features = tuple(torch.randn(1, s.cameras, s.channels, s.height, s.width) for s in ours.sources)
    if cameras is None:
        size = (int(source.height * source.stride), int(source.width * source.stride))
        cameras = ring(source.cameras, size, 1, features[0].device)
    return Pair(title, Original(module, call), ours, features if len(features) > 1 else features[0], cameras)


def compare(clones: Path, only: Sequence[str], rounds: int) -> None:
    """Time every pair and print the table."""
    threads = torch.get_num_threads()
    table = Table(title=f"batch 1, float32, {threads} threads; ms, medians")
    for heading in ("", "original", "ours", "ratio", "fixed rig", "original fwd+bwd", "ours", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in track(only, "timing pairs"):
        torch.manual_seed(0)
        found = PAIRS[name](clones)
        arguments = (found.features, found.cameras)
        timed = [Workload(found.original, arguments), Workload(found.ours, arguments)]
        forward = list(timed)
        if isinstance(found.ours, GeometricReshaper):
            rig = FixedRig(copy.deepcopy(found.ours).eval(), found.cameras)
            forward.append(Workload(rig, (found.features, None)))
        theirs, ours, *fixed_rig = measure(forward, rounds, False)
        fixed = "".join(f"{cost.forward_s * 1e3:.1f}" for cost in fixed_rig)
        their_step, our_step = (cost.step_s for cost in measure(timed, rounds, True))
        times = [theirs.forward_s, ours.forward_s, their_step, our_step]
        before, after, step_before, step_after = (f"{seconds * 1e3:.1f}" for seconds in times)
        ratio, step_ratio = (f"{times[i + 1] / times[i]:.2f}" for i in (0, 2))
        table.add_row(found.title, before, after, ratio, fixed, step_before, step_after, step_ratio)
        print_line((" ".join([name, *(f"{seconds:.4f} s" for seconds in times)]), "dim"))
    print_table(table)


def page(clones: Path, only: Sequence[str], rounds: int, device: torch.device) -> Table:
    """Measure every pair in float32 and bfloat16, eager and compiled, next to the least times."""
    rows: list[dict[str, Any]] = []
    for name, (precision, dtype), form in track(list(product(only, AUTOCAST.items(), FORMS)), "timing pairs"):
        torch.manual_seed(0)
        with device:
            found = PAIRS[name](clones)
        arguments = (found.features, found.cameras)
        way = {"device": str(device), "precision": precision, "form": form}
        sides: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
            "original": (found.original.to(device), arguments), "ours": (found.ours.to(device), arguments)
        }  # fmt: skip
        if isinstance(found.ours, GeometricReshaper):
            sides["fixed rig"] = FixedRig(copy.deepcopy(found.ours).eval(), found.cameras), (found.features, None)
        for side, (module, given) in sides.items():
            workload = Workload(module, given, dtype, form=form)
            try:
                (cost,) = measure([workload], rounds, side != "fixed rig")
            except RuntimeError as error:
                if not of_compiler(error):
                    raise
                print_line((f"{name}, {side}: torch cannot compile it", "yellow"))
            else:
                rows.append({"reshaper": f"{name} {side}", **way, **asdict(cost)})
    return floor_table("published shapes, batch 1", rows)


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clones", type=Path, required=True, help="folder of the cloned repositories")
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS), help="some of the comparisons")
    parser.add_argument(
        "--rounds", type=integer(1, 10_000), default=7, help="measurements of each; the median counts (7)"
    )
    parser.add_argument("--device", help="print one page of this device, cpu or cuda; else a table of the CPU")
    given = parser.parse_args()
    if given.device:
        print_table(page(given.clones, given.only, given.rounds, read_device(given.device)))
    else:
        compare(given.clones, given.only, given.rounds)


if __name__ == "__main__":
    run_script(main)
