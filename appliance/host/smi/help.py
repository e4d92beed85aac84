"""The usage text of the simulated nvidia-smi, and its lists of fields. Standard library only."""

from appliance.host.smi.fields import QUERIES

USAGE = """nvidia-smi (simulated by the inference appliance)

    nvidia-smi [OPTION1 [ARG1]] [OPTION2 [ARG2]] ...

    -h,   --help                Print this.
          --version             Print the versions.
    -L,   --list-gpus           List the GPUs.
    -q,   --query               Print everything about the GPUs.
    -x,   --xml-format          With -q: as XML.
    -d,   --display=            With -q: only some sections, separated by commas.
    -i,   --id=                 Only some GPUs: index, UUID or bus id, separated by commas.
    -f,   --filename=           Write into a file.
    -l,   --loop=               Repeat every N seconds.
    -lms, --loop-ms=            Repeat every N milliseconds.
          --query-gpu=          Print fields of the GPUs; with --format=csv[,noheader][,nounits]. \
Also --query-compute-apps=,
                                --query-accounted-apps=, --query-retired-pages=, --query-remapped-rows=.
          --help-query-gpu      List the fields; likewise for the other queries.
"""


def render_fields(query):
    """Render the list of a query's fields in the tool's layout: the quoted names, then what they are."""
    lines = [f'List of valid properties to query for the switch "--query-{query}":', ""]
    for primary, aliases, unit, _ in QUERIES[query]:
        lines.append(" or ".join(f'"{name}"' for name in (primary, *aliases)))
        words = primary.replace(".", " ").replace("_", " ")
        lines += [f"{words[:1].upper()}{words[1:]}{f', in {unit}' if unit else ''}.", ""]
    return "\n".join(lines)
