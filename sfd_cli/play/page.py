"""The page: controls, the viewer, and which of them calls what. All it computes with is `controls`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

# Before gradio is imported, which looks at it.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from sfd_cli.errors import SfdError
from sfd_cli.play import controls
from sfd_cli.play.controls import Keep, Settings
from sfd_cli.play.studio import Studio

KEEPINGS = [
    ("nothing", "nothing"),
    ("its semantics", "semantics"),
    ("its textures", "textures"),
    ("a rectangle", "rectangle"),
    ("all but a rectangle", "all but a rectangle"),
]
AHEAD = "By how much the semantics are ahead of the textures; 0: both at once."
MOST_STEPS = 100
MOST_SCALE = 4.0
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#viewer .html-container { padding: 0 !important; }
.tight p { margin: 0; font-size: .9em; }
.dice { align-self: center; flex: 0 0 auto !important; margin: 0 12px; padding: 8px 12px; }
"""


@dataclass(frozen=True)
class Side:
    """The controls of one picture, in the order of `controls.Settings`."""

    label: gr.Dropdown
    seed: gr.Number
    ahead: gr.Slider
    guidance: gr.Radio
    scale: gr.Slider
    steps: gr.Slider

    @property
    def all(self) -> list[Any]:
        """Every control."""
        return [self.label, self.seed, self.ahead, self.guidance, self.scale, self.steps]


def theme() -> gr.themes.Base:
    """The look, with fonts of the system: none is fetched."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Default(primary_hue="blue", **fonts).set(block_info_text_color="*neutral_600")


def build(studio: Studio) -> gr.Blocks:
    """The page of a model."""
    with gr.Blocks(title="sfd play", analytics_enabled=False) as page:
        origin, pictures, own = gr.State(None), gr.State([]), controls.own_settings(studio)
        gr.Markdown(_heading(studio), elem_classes="tight")
        viewer = _viewer()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                gr.Markdown("### A")
                with gr.Row(visible=False) as noted:
                    note = gr.Markdown(elem_classes="tight", elem_id="note")
                    release = gr.Button("Let go", size="sm", elem_id="release", elem_classes="dice")
                a, dice_a = _side(studio, "a", own, studio.ahead.trained if studio.ahead else "")
            with gr.Column(min_width=280):
                gr.Markdown("### B")
                keep, rectangle = _keep(studio)
                b, dice_b = _side(studio, "b", own._replace(seed=own.seed + 1), AHEAD)
        with gr.Row():
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            take = gr.Button("Put B in A's place", elem_id="take")
            upload = gr.UploadButton("Open a saved PNG", file_types=[".png"], type="binary", elem_id="open")
            live = gr.Checkbox(True, label="Draw at every change", elem_id="live")
        wires = _Wires(studio, a, b, keep, origin, pictures, viewer)
        wires.drawing(page, draw, live, rectangle)
        wires.seeds(dice_a, dice_b)
        wires.rectangle(rectangle)
        wires.origins(take, upload, release, note, noted)
    return page


@dataclass(frozen=True)
class _Wires:
    """Which control calls what."""

    studio: Studio
    a: Side
    b: Side
    keep: list[Any]
    origin: gr.State
    pictures: gr.State
    viewer: gr.HTML

    def drawing(self, page: gr.Blocks, draw: gr.Button, live: gr.Checkbox, rectangle: gr.Row) -> None:
        """Draw at the beginning, at the button, and, where that is wanted, at every change by hand."""
        inputs = [*self.a.all, *self.b.all, *self.keep, self.origin]
        outputs = [self.viewer, self.pictures]
        settings = {"inputs": inputs, "outputs": outputs, "api_visibility": "private", "show_progress_on": self.viewer}
        gr.on([page.load, draw.click], self._draw, **settings)
        moved = [*self.a.all, *self.b.all, *self.keep]
        triggers = [_by_hand(control) for control in moved]
        settings["inputs"] = [live, *inputs]
        gr.on(triggers, self._draw_if, trigger_mode="always_last", **settings)

    def seeds(self, dice_a: gr.Button, dice_b: gr.Button) -> None:
        """The dice, and another seed for B where it would be A once more."""
        for dice, side in ((dice_a, self.a), (dice_b, self.b)):
            rolled = dice.click(controls.another_seed, side.seed, side.seed, api_visibility="private")
            self._then_draw(rolled)
        self._set_apart(self.keep[0].input)

    def rectangle(self, row: gr.Column) -> None:
        """Shown where it is wanted; drawn on the viewer it is chosen, too."""
        what, numbers = self.keep[0], self.keep[2:]
        what.input(lambda chosen: gr.update(visible="rectangle" in chosen), what, row, api_visibility="private")

        def chosen(what: str, event: gr.EventData) -> list[Any]:
            keeping = what if "rectangle" in what else "rectangle"
            return [keeping, gr.update(visible=True), *(number + 1 for number in event.cells)]

        picked = self.viewer.select(chosen, what, [what, row, *numbers], api_visibility="private")
        self._then_draw(self._set_apart(picked.then))

    def origins(
        self, take: gr.Button, upload: gr.UploadButton, release: gr.Button, note: gr.Markdown, noted: gr.Row
    ) -> None:
        """B, or a saved picture, in A's place; and A without what it keeps."""
        outputs = [self.origin, note, noted, *self.a.all]
        studio = self.studio

        def place(picture: controls.Picture) -> list[Any]:
            said = controls.note_of(studio, picture)
            return [picture.as_plain(), said, gr.update(visible=bool(said)), *controls.settings_of(studio, picture)]

        @_friendly
        def open_png(content: bytes) -> list[Any]:
            picture, remark = controls.opened(studio, content)
            if remark:
                gr.Warning(remark)
            return place(picture)

        taken = take.click(
            lambda pictures: place(pictures[1]) if pictures else gr.skip(),
            self.pictures,
            outputs,
            api_visibility="private",
        )
        opened = upload.upload(open_png, upload, outputs, api_visibility="private")
        freed = release.click(lambda: (None, "", gr.update(visible=False)), None, outputs[:3], api_visibility="private")
        for event in (taken, opened, freed):
            self._then_draw(event)

    def _set_apart(self, after: Callable[..., Any]) -> Any:
        """Another seed for B, where on its own it would be A once more; else B's is not touched."""

        def apart(what: controls.Keeping, a: float, b: float) -> Any:
            seed = controls.seed_beside(what, a, b)
            return gr.skip() if seed == b else seed

        return after(apart, [self.keep[0], self.a.seed, self.b.seed], self.b.seed, api_visibility="private")

    def _then_draw(self, event: Any) -> None:
        event.success(
            self._draw,
            [*self.a.all, *self.b.all, *self.keep, self.origin],
            [self.viewer, self.pictures],
            api_visibility="private",
            show_progress_on=self.viewer,
        )

    @property
    def _draw(self) -> Callable[..., Any]:
        studio, count = self.studio, len(Settings._fields)

        @_friendly
        def draw(*said: Any, progress: gr.Progress = gr.Progress()) -> tuple[Any, Any]:  # noqa: B008 - gradio's way
            a, b = Settings(*said[:count]), Settings(*said[count : 2 * count])
            pictures = controls.pair(studio, a, b, Keep(*said[2 * count : -1]), said[-1])
            return controls.shown(studio, pictures, lambda part, what: progress(part, desc=what)), pictures

        return draw

    @property
    def _draw_if(self) -> Callable[..., Any]:
        draw = self._draw

        def draw_if(wanted: bool, *said: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
            return draw(*said, progress=progress) if wanted else (gr.skip(), gr.skip())

        return draw_if


def _friendly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as a sentence on the page."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except SfdError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return wrapped


def _by_hand(control: Any) -> Any:
    """The event that a person has changed a control, and no program: of a slider, that it is let go."""
    return control.release if isinstance(control, gr.Slider) else control.input


def _viewer() -> gr.HTML:
    parts = {
        name: resources.files(__package__).joinpath(f"viewer.{name}").read_text("utf-8")
        for name in ("html", "css", "js")
    }
    return gr.HTML(
        None,
        html_template=parts["html"],
        css_template=parts["css"],
        js_on_load=parts["js"],
        elem_id="viewer",
        min_height=360,
    )


def _heading(studio: Studio) -> str:
    space = studio.sampler.space
    size = sum(parameter.numel() for parameter in studio.sampler.dit.parameters())
    side = studio.sampler.image_size
    return (
        f"### sfd play · {studio.sampler.name}\n"
        f"{len(studio.classes)} classes, {side} x {side} pixels, {space.grid} x {space.grid} cells, {size / 1e6:.1f} M"
        " parameters. Drag a rectangle on A to keep that part in B."
    )


def _side(studio: Studio, name: str, own: Settings, told: str) -> tuple[Side, gr.Button]:
    """The controls of a picture, which say `own`, and the button for another seed; `told` is about the offset."""
    ahead = studio.ahead
    classes = [(text, row) for row, text in enumerate(studio.classes)]
    with gr.Row():
        label = gr.Dropdown(classes, value=own.label, label="Class", elem_id=f"class-{name}", min_width=120)
        seed = gr.Number(own.seed, label="Seed", precision=0, elem_id=f"seed-{name}", min_width=90)
        dice = gr.Button("New seed", size="sm", min_width=90, elem_id=f"dice-{name}", elem_classes="dice")
    slider = gr.Slider(
        ahead.lowest if ahead else 0,
        ahead.highest if ahead else 1,
        own.ahead,
        step=0.05,
        label=ahead.label if ahead else "Offset",
        info=told,
        visible=ahead is not None,
        elem_id=f"ahead-{name}",
    )
    with gr.Accordion("Guidance and steps", open=False, elem_id=f"more-{name}"):
        more = _more(studio, name, own)
    return Side(label, seed, slider, *more), dice


def _more(studio: Studio, name: str, own: Settings) -> tuple[gr.Radio, gr.Slider, gr.Slider]:
    guidance = gr.Radio(
        studio.guidances,
        value=own.guidance,
        label="Guidance",
        info="cfg: away from no class; autoguidance: away from a weaker model.",
        elem_id=f"guidance-{name}",
    )
    scale = gr.Slider(
        0,
        max(MOST_SCALE, own.scale),
        own.scale,
        step=0.05,
        label="Guidance scale",
        info="1 is no guidance; more makes pictures plainer and less varied.",
        elem_id=f"scale-{name}",
    )
    steps = gr.Slider(
        1,
        max(MOST_STEPS, own.steps),
        own.steps,
        step=1,
        label="Steps",
        info="Of the solver, over the whole way: more are nearer to its end, and slower.",
        elem_id=f"steps-{name}",
    )
    return guidance, scale, steps


def _keep(studio: Studio) -> tuple[list[Any], gr.Column]:
    """The controls of what B keeps of A, in the order of `controls.Keep`, and what holds those of the rectangle."""
    semantics, grid = studio.sampler.space.semantic > 0, studio.sampler.space.grid
    choices = KEEPINGS if semantics else [pair for pair in KEEPINGS if pair[1] not in ("semantics", "textures")]
    what = gr.Radio(
        choices,
        value="semantics" if semantics else "nothing",
        label="Keeps of A",
        elem_id="keep",
        info="What is kept forms as it did in A; the rest is drawn anew from B's own noise, beside it.",
    )
    with gr.Column(visible=False) as column:
        streams = gr.Radio(
            [("textures and semantics", "both"), "textures", "semantics"],
            value="both",
            label="Of the rectangle",
            visible=semantics,
            elem_id="streams",
        )
        with gr.Row():
            places = [("From row", 1), ("to row", max(1, grid // 2)), ("From column", 1), ("to column", grid)]
            numbers = [
                gr.Number(value, label=label, precision=0, min_width=70, elem_id=f"cells-{place}")
                for place, (label, value) in enumerate(places)
            ]
    return [what, streams, *numbers], column
