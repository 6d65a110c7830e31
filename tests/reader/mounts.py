"""Mount namespaces (mountinfo)."""

import re

from kernel import attempt, read, text


def lines(data):
    found = []
    for line in text(data).split("\n"):
        if not line:
            continue
        before, _, after = line.partition(" - ")
        number, parent, device, root, point, options, *optional = before.split(" ")
        fs_type, source, super_options = after.split(" ", 2)
        found.append({"number": number, "parent": parent, "device": device, "root": root, "point": point,
                      "options": options, "optional": optional, "fs_type": fs_type, "source": source,
                      "super_options": super_options})
    return found


def facts(line):
    """As it is compared: numbers of the kernel's choice by identity."""
    optional = [{"$id": f"peers {n}", "kind": k} if (m := re.fullmatch(r"(shared|master):(\d+)", o)) and (k := m[1]) and (n := m[2])
                else o for o in line["optional"] if not o.startswith("propagate_from")]
    device = line["device"]
    return {**line, "number": {"$id": "mount " + line["number"]}, "parent": {"$id": "mount " + line["parent"]},
            "optional": optional, "device": {"$id": "device " + device} if device.startswith("0:") else device}


def namespace(pid):
    """Mounts by mount point; several on one point are numbered."""
    data = attempt(read, f"/proc/{pid}/mountinfo")
    if not isinstance(data, bytes):
        return [], data
    parsed, found = lines(data), {}
    for line in parsed:
        # Names of network namespaces come and go with other tests of this machine; every target sees them.
        if line["fs_type"] == "nsfs" and line["point"].startswith("/run/netns/"):
            continue
        key, n = line["point"], 1
        while key in found:
            n += 1
            key = f"{line['point']} ({n})"
        found[key] = facts(line)
    return parsed, found
