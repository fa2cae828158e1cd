"""Samples summed up, and shown as one Markdown table: medians, ranges, ratios to the first peer."""

import statistics

FIGURES = ("perSecond", "p50Ms", "p99Ms", "cpuUs", "generatorCpuUs")


def summary(samples, peers, loads):
    """A row for each load and peer: median, least and most of each figure, and ratios to the first peer that has this load."""
    rows = []
    for load in loads:
        base = None
        for peer in peers:
            own = [one for one in samples if one["peer"] == peer and one["load"] == load]
            if not own:
                continue
            row = {"load": load, "peer": peer, "rounds": len(own)}
            for figure in FIGURES:
                values = [one[figure] for one in own]
                row[figure] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            base = base or row
            row["ratio"] = {figure: divided(row[figure]["median"], base[figure]["median"]) for figure in FIGURES}
            rows.append(row)
    return rows


def divided(value, base):
    """None where there is nothing to divide by."""
    return value / base if base else None


def shown(figure, digits):
    """Median (least–most)."""
    text = [f"{figure[name]:,.{digits}f}" for name in ("median", "min", "max")]
    return f"{text[0]} ({text[1]}–{text[2]})"


def times(ratio):
    return "" if ratio is None else f"{ratio:.2f}"


def markdown(told):
    """Facts, table, and what is missing from it."""
    machine, options = told["machine"], told["options"]
    lines = [
        f"{machine['cores']} cores ({machine['processor']}), {machine['memoryGiB']} GiB, {machine['kernel']}, {machine['fileSystem']}, "
        f"a durable append of 4 KiB takes {machine['syncMs']} ms; load average before: {machine['loadAverage'][0]:.1f}"
        + loads_seen(told["samples"]),
        "",
        *(f"- {name}: {version}" for name, version in told["peers"].items()),
        "",
        f"{options['connections']} connections, closed loop, {options['keys']:,} keys, uniform, {options['value_bytes']} bytes; "
        f"{options['rounds']} rounds of {options['seconds']:g} s each; median (least–most).",
        "",
        "| load | peer | requests/s | × | p50, ms | p99, ms | × | server CPU, µs a request | × |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        ratio = row["ratio"]
        name = f"batchGet of {options['batch']}" if row["load"] == "batchGet" else row["load"]
        fields = [
            name, row["peer"], shown(row["perSecond"], 0), times(ratio["perSecond"]), shown(row["p50Ms"], 1),
            shown(row["p99Ms"], 1), times(ratio["p99Ms"]), shown(row["cpuUs"], 0), times(ratio["cpuUs"]),
        ]
        lines.append(f"| {' | '.join(fields)} |")
    for name, missing in told["skipped"].items():
        lines.append(f"| | {name} | skipped: {'; '.join(missing)} is missing | | | | | | |")
    lines += [f"\nFAILED: {text}" for text in told["failures"]]
    return "\n".join(lines)


def loads_seen(samples):
    """The load average while it was measured, which the load itself is part of."""
    seen = [one["load1"] for one in samples]
    return f", meanwhile {min(seen):.1f}–{max(seen):.1f}" if seen else ""
