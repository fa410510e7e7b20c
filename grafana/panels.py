"""Panels as facts → grafana-foundation-sdk's builders, laid out on Grafana's grid of 24 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, text, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as kind
from grafana_foundation_sdk.models import heatmap as heat

COLUMNS = 24
SOURCE = kind.DataSourceRef(type_val="prometheus", uid="${datasource}")
Step = tuple[float | None, str]


@dataclass(frozen=True)
class Panel:
    """One panel: what it is called, its description for the person on call, its unit and its queries with legends."""

    title: str
    said: str
    unit: str
    queries: Sequence[tuple[str, str]]
    shape: Literal["stat", "lines", "stacked", "heatmap", "text"] = "lines"
    steps: Sequence[Step] = ()
    width: int = 8
    height: int = 8
    decimals: int | None = None
    most: float | None = None
    words: Sequence[tuple[float, str, str]] = ()
    """Values that are shown as a word in a colour."""
    logarithmic: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


def board(title: str, uid: str, said: str, rows: Sequence[Row], *, others: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A whole dashboard as the document that Grafana reads."""
    made = (
        dashboard.Dashboard(f"Foreseen / {title}")
        .uid(uid)
        .description(said)
        .tags(["foreseen"])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .readonly()
        .tooltip(kind.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source"))
        .with_variable(_variable("job", "Job", "label_values(foreseen_build_info, job)"))
        .with_variable(_variable("model", "Model", "label_values(foreseen_rows_total, model)"))
        .with_variable(dashboard.TextBoxVariable("price").label("Price of a compute hour").default_value("1"))
        .annotation(
            dashboard.AnnotationQuery()
            .name("Restarts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("orange")
            .expr('changes(foreseen_worker_start_time_seconds{job=~"$job"}[1m]) > 0')
        )
    )
    for name, address in others:
        made = made.link(
            dashboard.DashboardLink(name)
            .type(kind.DashboardLinkType.LINK)
            .url(f"/d/{address}")
            .keep_time(True)
            .include_vars(True)
        )
    number, y = 1, 0
    for row in rows:
        made = made.with_row(dashboard.Row(row.title).id(number).grid_pos(kind.GridPos(h=1, w=COLUMNS, x=0, y=y)))
        number, y, x, tallest = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            place = kind.GridPos(h=panel.height, w=panel.width, x=x, y=y)
            made = made.with_panel(_built(panel).id(number).grid_pos(place))
            number, x, tallest = number + 1, x + panel.width, max(tallest, panel.height)
        y += tallest
    document: dict[str, Any] = made.build()  # type: ignore[assignment]
    return document


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(kind.VariableOption(text="All", value="$__all", selected=True))
        .refresh(kind.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(kind.VariableSort.ALPHABETICAL_ASC)
    )


def _built(panel: Panel) -> Any:
    made: Any
    match panel.shape:
        case "text":
            return text.Panel().title(panel.title).mode("markdown").content(panel.said)  # type: ignore[arg-type]
        case "stat":
            made = (
                stat.Panel()
                .graph_mode(common.BigValueGraphMode.AREA)
                .color_mode(common.BigValueColorMode.VALUE)
                .reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
                .no_value("no data")
            )
        case "heatmap":
            made = (
                heatmap.Panel()
                .y_axis(heatmap.YAxisConfig().unit(panel.unit))
                .color(heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
            )
        case _:
            made = _lines(panel)
    made = made.title(panel.title).description(panel.said).datasource(SOURCE).unit(panel.unit)
    if panel.decimals is not None:
        made = made.decimals(panel.decimals)
    if panel.most is not None:
        made = made.max(panel.most)
    if panel.words:
        options = {f"{value:g}": kind.ValueMappingResult(text=word, color=color) for value, word, color in panel.words}
        made = made.mappings([kind.ValueMap(options=options)])
    if panel.shape != "heatmap":
        steps = panel.steps or ((None, "blue"),)
        made = made.thresholds(
            dashboard.ThresholdsConfig()
            .mode(kind.ThresholdsMode.ABSOLUTE)
            .steps([kind.Threshold(value=value, color=color) for value, color in steps])
        )
    for number, (query, legend) in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query).legend_format(legend or "__auto").ref_id(chr(ord("A") + number))
        if panel.shape == "heatmap":
            target = target.format("heatmap")  # type: ignore[arg-type]
        made = made.with_target(target.datasource(SOURCE).range())
    return made


def _lines(panel: Panel) -> Any:
    made: Any = (
        timeseries.Panel()
        .fill_opacity(60 if panel.shape == "stacked" else 8)
        .line_width(1)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            build.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )
    if not panel.logarithmic:
        made = made.min(0)
    if panel.shape == "stacked":
        made = made.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if panel.logarithmic:
        scale = build.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        made = made.scale_distribution(scale)
    if panel.steps:
        made = made.thresholds_style(build.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.LINE))
    return made
