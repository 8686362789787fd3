"""Section of the evidence page on few training events: scores by arm and number of events."""

from benchmarks.evidence.evidence_tables import cell, markdown_table
from benchmarks.evidence.study_text import wrapped
from benchmarks.evidence.unit_results import Evidence

from .arms import arms_of
from .intervals import Bootstrap
from .summary_text import listed

NOT_TRAINED = "Not trained yet."


def few_data_table(evidence: Evidence, bootstrap: Bootstrap) -> str:
    """Return CSI-M, MSE and the selected steps of the arms with few events."""
    arms = [arm for arm in arms_of(evidence.study) if arm.events is not None and arm.name in evidence.by_arm]
    if not arms:
        return NOT_TRAINED
    rows = []
    by_events: dict[int | None, list[float]] = {}
    for arm in arms:
        records = [result.record for result in evidence.by_arm[arm.name].values()]
        chosen = sorted(record["selected_step"] for record in records)
        falls = [record["val_loss"][-1][1] / min(loss for _, loss in record["val_loss"]) for record in records]
        by_events.setdefault(arm.events, []).append(sum(falls) / len(falls))
        rows.append(
            (
                f"{arm.events}",
                arm.name,
                f"{len(records)}",
                cell(bootstrap.one(((arm.name, 1.0),), "csi/mean")),
                cell(bootstrap.one(((arm.name, 1000.0),), "mse")),
                f"{chosen[0]} to {chosen[-1]}",
                f"{sum(falls) / len(falls):.2f}",
            )
        )
    steps, largest, val = arms[0].steps, *(evidence.study.archive.events[split] for split in ("train", "val"))
    fewer = [events for events in evidence.study.few_events if events < val]
    more = f", more than the {listed(fewer)} training events of the smallest arms" if fewer else ""
    overfits = [f"{max(ratios):.2f} with {events} events" for events, ratios in by_events.items()]
    text = (
        f"These arms have {listed(evidence.study.few_events)} of the {largest} training events, no symmetries, "
        f"{steps} steps, and only sequences with later real frames. The weights with the highest CSI-M on the val "
        f"events, of 24 equally spaced steps, are scored. These are {val} val events{more}. The last column is the "
        "validation loss of the last step divided by the lowest of those after each fifth of the steps, mean over "
        f"seeds; above 1 the run overfits. It is at most {listed(overfits)}."
    )
    head = ("events", "arm", "seeds", "CSI-M", "MSE x 1000", "selected step", "last / lowest val loss")
    return "\n\n".join([wrapped(text), markdown_table(head, rows)])
