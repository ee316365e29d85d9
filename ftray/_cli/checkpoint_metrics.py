"""``ftray checkpoint metrics``: figures and counters of a store's keys, for Prometheus.

Owns their names. What the store knows comes from `KeyInfo`, counters from the actors (``--live``): they count
what an incarnation has done, and begin anew with the next, as Prometheus expects of counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ftray._cli import checkpoint_live
from ftray._cli import checkpoint_place as place

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ftray.checkpoint import KeyInfo

PREFIX = "ftray_checkpoint_"


class _Of(NamedTuple):
    """A figure: its name and meaning, and how it is got; None: there is none."""

    name: str
    meaning: str
    of: Callable[[Any], float | None]


def _newest_size(info: KeyInfo) -> float | None:
    return next((s.size_bytes for s in reversed(info.snapshots) if s.counts), None)


def _last_recovery(field: str) -> Callable[[KeyInfo], float | None]:
    return lambda info: info.recoveries[-1][field] if info.recoveries else None


def _field(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda said: said.get(name)


_STORED = (
    _Of("held", "1 while a process that lives holds the key.", lambda info: float(info.state == "held")),
    _Of("parked", "1 while the actor is parked.", lambda info: float(info.state == "parked")),
    _Of("orphan", "1 if nobody can ever ask for the key again.", lambda info: float(info.orphan)),
    _Of("epoch", "Epoch of the newest claim.", lambda info: info.holder["epoch"] if info.holder else None),
    _Of("snapshots", "Snapshots that count.", lambda info: float(sum(s.counts for s in info.snapshots))),
    _Of("snapshot_age_seconds", "Age of the newest snapshot.", lambda info: info.snapshot_age_s),
    _Of("snapshot_size_bytes", "Size of the newest snapshot.", _newest_size),
    _Of("last_recovery_seconds", "How long the last recovery took.", _last_recovery("duration_s")),
    _Of("last_recovery_timestamp_seconds", "When it was, in Unix time.", _last_recovery("at_unix_s")),
    _Of("last_recovery_calls", "Calls that it ran again.", _last_recovery("calls_replayed")),
    _Of("failed_recoveries", "Since the last good one.", lambda info: float(len(info.failed_recoveries))),
)
_LIVE = (
    _Of("answers", "1 if the actor has told its figures.", lambda said: float("saves" in said)),
    _Of("failing", "1 while saves fail, or the journal.", lambda said: float(said["state"] == "failing")),
    _Of("calls_unsaved", "Calls since the last snapshot.", _field("calls_since_saved")),
    _Of("last_save_seconds", "How long the last save took.", _field("last_save_s")),
    _Of("last_pause_seconds", "How long calls stood still for it.", _field("last_pause_s")),
    _Of("max_pause_seconds", "The longest such pause.", _field("max_pause_s")),
    _Of("journal_records", "Records since the oldest snapshot.", _field("journal_records")),
    _Of("answers_held", "Answers that wait for the journal.", _field("answers_held")),
    _Of("replies_kept", "Replies kept for callers that may ask again.", _field("replies_kept")),
    _Of("reply_bytes", "Bytes of these.", _field("reply_bytes")),
)
_COUNTED = (
    _Of("calls", "Calls that changed the state, over all incarnations.", _field("calls")),
    _Of("saves", "Snapshots saved.", _field("saves")),
    _Of("saved_bytes", "Bytes of these.", _field("saved_bytes_total")),
    _Of("save_seconds", "Time that saving took.", _field("save_s_total")),
    _Of("save_cpu_seconds", "CPU time that saving took.", _field("save_cpu_s_total")),
    _Of("pause_seconds", "Time for which calls stood still.", _field("pause_s_total")),
    _Of("failures", "Saves that failed, and outages of the journal.", _field("failures")),
    _Of("journal_written_bytes", "Bytes written to the journal.", _field("journal_written_bytes")),
)


class Figures:
    """A collector of `prometheus_client` over keys as they were when they were looked at."""

    def __init__(self, infos: list[KeyInfo], said: Mapping[str, Mapping[str, Any]]) -> None:
        self._infos, self._said = infos, said

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        told = [(info, self._said[info.key]) for info in self._infos if info.key in self._said]
        stored = [(info, info) for info in self._infos]
        yield from self._families(GaugeMetricFamily, _STORED, stored)
        yield self._bytes()
        if told:
            yield from self._families(GaugeMetricFamily, _LIVE, told)
            yield from self._families(CounterMetricFamily, _COUNTED, told)

    def _families(
        self, family: Any, figures: tuple[_Of, ...], sources: list[tuple[KeyInfo, Any]]
    ) -> Iterator[Metric]:
        for figure in figures:
            made = family(PREFIX + figure.name, figure.meaning, labels=["key", "mode"])
            for info, source in sources:
                value = figure.of(source)
                if value is not None:
                    made.add_metric([info.key, info.mode], value)
            yield made

    def _bytes(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        made = GaugeMetricFamily(
            f"{PREFIX}store_bytes", "What the key takes in its store.", labels=["key", "mode", "kind"]
        )
        for info in self._infos:
            for kind, size_bytes in info.bytes.items():
                made.add_metric([info.key, info.mode, kind], size_bytes)
        return made


@click.command("metrics")
@place.store
@place.live
@place.address
@place.timeout
@click.option("--output", metavar="FILE", help="Write there, by a rename, instead of to the screen.")
@place.told
def metrics(store: str | None, live: bool, address: str | None, timeout: float, output: str | None) -> None:
    """Print figures and counters of all keys in the text format of Prometheus.

    With --output FILE.prom in a directory of the node exporter's textfile collector they are there for it.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
    except ImportError:
        needed = "this command needs prometheus-client: pip install 'ftray[cli]'"
        raise click.ClickException(needed) from None
    reader = place.open_store(store)
    infos = [reader.describe(key) for key in place.keys_of(reader, False)]
    said = checkpoint_live.ask_holders(infos, address, timeout) if live else {}
    registry = CollectorRegistry()
    registry.register(Figures(infos, said))
    if output is not None:
        write_to_textfile(output, registry)
    else:
        click.echo(generate_latest(registry).decode(), nl=False)
