#!/usr/bin/env python3
"""Reads everything that the kernel shows of a process tree, and compares two readings.

    state.py capture PID [--memory] [-o FILE]      JSON; with --memory also digests of contents (the tree must be quiet)
    state.py compare BEFORE AFTER [--allow FILE]...   exit 1 with the differences listed

It shares no code with the engine, so that a mistake in how the engine reads cannot hide itself. Standard library only.
What may differ stands in allow.toml, a reason for each line; more files can be named. Process ids are compared as the
root of the tree sees them, so a tree restored in a new PID namespace compares with the original.
"""

import argparse
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)


def compiled_modules():
    """It is started some thousand times by the tests: its modules are compiled once, outside of the sources."""
    build = os.path.join(os.path.dirname(os.path.dirname(HERE)), "target")
    if os.access(build, os.W_OK):
        sys.dont_write_bytecode, sys.pycache_prefix = False, os.path.join(build, "tmp", "reader")
    else:
        sys.dont_write_bytecode = True


def capture(root, contents):
    import descriptors
    import identity
    import memory
    import mounts
    import process
    from kernel import read, read_link, read_text

    pids = identity.tree(root)
    statuses = {}
    for pid in pids:
        for tid in [pid, *identity.tids(pid)]:
            statuses[tid] = identity.parse_status(read(f"/proc/{pid}/task/{tid}/status"))
    ids, devices = identity.Ids(root, statuses), identity.Devices()
    devices.see(mounts.namespace("self")[0])
    namespaces, seen = {}, set()
    for pid in pids:
        key = (str(read_link(f"/proc/{pid}/ns/mnt")), str(read_link(f"/proc/{pid}/root")))
        if key not in seen:
            seen.add(key)
            lines, namespaces[str(ids.inner[pid])] = mounts.namespace(pid)
            devices.see(lines)
    facts = {"mounts": namespaces, "processes": {}}
    for pid in pids:
        one = process.process(pid, ids, devices)
        if one["stat"]["state"] != "Z":
            one["threads"] = {str(ids.inner[t]): process.thread(pid, t, ids, devices) for t in identity.tids(pid)}
            one["memory"] = memory.memory(pid, devices, contents)
            one["descriptors"] = descriptors.descriptors(pid, ids, devices)
        facts["processes"][str(ids.inner[pid])] = one
    alive = [p for p in pids if facts["processes"][str(ids.inner[p])]["stat"]["state"] != "Z"]
    facts["sharing"] = descriptors.sharing(alive, [t for p in alive for t in identity.tids(p)], ids)
    facts["root"] = str(ids.inner[root])
    facts["boot_id"] = read_text("/proc/sys/kernel/random/boot_id")
    return facts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("capture")
    verb.add_argument("pid", type=int)
    verb.add_argument("--memory", action="store_true")
    verb.add_argument("-o", "--output")
    verb = verbs.add_parser("compare")
    verb.add_argument("before")
    verb.add_argument("after")
    verb.add_argument("--allow", action="append", default=[])
    options = parser.parse_args()
    compiled_modules()
    if options.verb == "capture":
        facts = capture(options.pid, options.memory)
        if options.output:
            with open(options.output, "w") as f:
                f.write(json.dumps(facts, sort_keys=True))
        else:
            print(json.dumps(facts, indent=1, sort_keys=True))
        return 0
    from compare import compare

    captures = []
    for file in (options.before, options.after):
        with open(file) as f:
            captures.append(json.load(f))
    differences = compare(*captures, [os.path.join(HERE, "allow.toml"), *options.allow])
    print("\n".join(differences) if differences else "no difference")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
