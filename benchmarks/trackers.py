"""What trackers cost a training: seconds of a step that logs, without one, with each, and with servers that fail.

A network is trained by the loop of `sfd train`, a row of every quantity being logged after every step, more often than
any training does. Candidates take turns. The servers are on this machine: one answers 500 to everything, one never
answers.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.config import Settings
from sfd_cli.data.order import EpochSampler
from sfd_cli.trackers import sending
from sfd_cli.trackers.sending import tracked
from sfd_cli.training.fit import fit
from sfd_cli.training.settings import LoopSettings

ROWS, WIDTH, BATCH = 512, 256, 64
CANDIDATES = ("none", "tensorboard", "wandb offline", "wandb, 500", "wandb, silent", "mlflow, 500", "mlflow, silent")


class Copying:
    """Fit a network to give back what it is given."""

    def __init__(self) -> None:
        self.rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Rows of the batch."""
        return {"rows": self.rows[torch.from_numpy(indices)]}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """Noise on the rows."""
        return {"noise": torch.randn(count, WIDTH, generator=generator, device=generator.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error."""
        return {"loss": (model(batch["rows"] + draws["noise"]) - batch["rows"]).square().mean()}


def network() -> nn.Sequential:
    """Some milliseconds of work."""
    torch.manual_seed(0)
    wide = 4 * WIDTH
    layers: list[nn.Module] = [nn.Linear(WIDTH, wide), nn.SiLU()]
    for _ in range(3):
        layers += [nn.Linear(wide, wide), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(wide, WIDTH))


@contextlib.contextmanager
def server(answers: bool) -> Iterator[str]:
    """The address of a server that answers 500, or never does."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not answers:
                ended.wait()
            with contextlib.suppress(OSError):
                self.send_error(500)

        do_GET = do_POST = do_PUT = do_PATCH = _refuse  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        ended.set()
        httpd.shutdown()


def train(candidate: str, steps: int, device: torch.device, addresses: dict[str, str]) -> tuple[float, str]:
    """Seconds of a step from the eleventh on, when a tracker has begun, and a digest of the weights."""
    tracker, _, how = candidate.partition(" ")
    tracker, how = tracker.rstrip(","), how or "none"
    os.environ["WANDB_MODE"] = "offline" if how == "offline" else "online"
    os.environ |= {"WANDB_BASE_URL": addresses.get(how, ""), "MLFLOW_TRACKING_URI": addresses.get(how, "")}
    took: list[float] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trackers = [] if tracker == "none" else [tracker]
        paths = {name: Path(folder, name) for name in ("metrics", "dit", "latents")}
        settings = Settings.model_validate({"paths": paths, "metrics": {"trackers": trackers}})
        loop = LoopSettings(steps, BATCH, 1e-4, steps, 1, 0)
        with tracked(settings, "dit", is_main=True) as feed:
            model = fit(
                Copying(),
                network(),
                EpochSampler(ROWS, BATCH, 0),
                loop,
                Path(folder, "checkpoints"),
                paths["metrics"] / "dit",
                device,
                candidate,
                on_step=[*feed.on_step, lambda step, model: took.append(time.perf_counter())],
            ).model
    weights = torch.cat([weight.detach().flatten().cpu() for weight in model.parameters()])
    return (took[-1] - took[10]) / (len(took) - 11), str(hash(weights.numpy().tobytes()))


def main() -> None:
    """Time all candidates turn by turn and check that their weights are equal to the bit."""
    parser = harness.arguments(__doc__)
    parser.set_defaults(repetitions=3)
    parser.add_argument("--steps", type=int, default=150, help="of one training [%(default)s]")
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), help="of those above [all]")
    options = parser.parse_args()
    sending.PATIENCE = 5.0
    os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    seconds: dict[str, list[float]] = {name: [] for name in options.candidates}
    weights = set()
    with server(answers=True) as failing, server(answers=False) as silent:
        addresses = {"500": failing, "silent": silent}
        for _ in range(options.repetitions):
            for name in options.candidates:
                each, digest = train(name, options.steps, torch.device(options.device), addresses)
                seconds[name].append(each)
                weights.add(digest)
    timings = {name: harness.Timing(name, values) for name, values in seconds.items()}
    baseline = timings[options.candidates[0]]
    rows = [
        {
            "tracker": name,
            "ms a step": 1e3 * timing.median,
            "times as long": harness.ratios(timing, baseline)["median"],
        }
        for name, timing in timings.items()
    ]
    harness.table(rows)
    print(f"weights of all: {'equal' if len(weights) == 1 else 'not equal'}")
    kept = {name: timing.seconds for name, timing in timings.items()}
    harness.save("trackers", options, {"seconds_of_a_step": kept, "rows": rows, "equal_weights": len(weights) == 1})


if __name__ == "__main__":
    main()
