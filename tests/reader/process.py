"""Facts of one process and of its threads, from the files of /proc/PID."""

import hashlib
import os
import struct

from identity import parse_status
from kernel import attempt, error, io_priority, read, read_link, read_text, robust_list, sched_attributes, text

STAT = """pid comm state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime priority
nice num_threads itrealvalue starttime vsize rss rsslim startcode endcode startstack kstkesp kstkeip signal blocked
sigignore sigcatch wchan nswap cnswap exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time
cguest_time start_data end_data start_brk arg_start arg_end env_start env_end exit_code""".split()

# Files of /proc/PID that are not compared. Everything else is, also files of kernels to come.
SKIPPED = {
    "arch_status": "counts time since AVX-512 was used",
    "clear_refs": "can only be written",
    "fd": "read by descriptors.py",
    "fdinfo": "read by descriptors.py",
    "io": "counts bytes since the start",
    "ksm_merging_pages": "what the kernel has merged so far",
    "ksm_stat": "what the kernel has merged so far",
    "latency": "counts waits since the start",
    "map_files": "the links say what maps says",
    "maps": "smaps has all of it",
    "mem": "contents: option --memory",
    "mountinfo": "read once for each mount namespace",
    "mounts": "mountinfo has all of it",
    "mountstats": "mountinfo has all of it",
    "net": "belongs to the network namespace; sockets are read through descriptors",
    "numa_maps": "policies are read by memory.py; the rest counts pages",
    "oom_adj": "oom_score_adj has it exactly",
    "oom_score": "depends on memory in use",
    "pagemap": "page frames",
    "patch_state": "belongs to the kernel",
    "sched": "counts switches; policy and priority are asked for by system call",
    "schedstat": "counts time",
    "seccomp_cache": "follows from the filters",
    "smaps": "read by memory.py",
    "smaps_rollup": "sum of smaps",
    "stack": "the kernel's stack",
    "stat": "read field by field",
    "statm": "stat and smaps have it",
    "status": "read field by field",
    "syscall": "depends on the instant",
    "task": "read thread by thread",
    "timers": "read below",
    "wchan": "depends on the instant",
}
LINKS = ("cwd", "root", "exe")
DIRECTORIES = ("attr", "ns")


def stat(data, ids):
    """All fields by name; ids translated."""
    end = data.rindex(b")")
    words = [data[:data.index(b" ")], data[data.index(b"(") + 1:end], *data[end + 2:].split()]
    fields = dict(zip(STAT, map(text, words), strict=False))
    fields["extra"] = [text(w) for w in words[len(STAT):]]
    for key in ("pid", "ppid", "pgrp", "session", "tpgid"):
        fields[key] = ids.of(fields[key])
    return fields


def status(data, ids):
    fields = parse_status(data)
    for key in ("Tgid", "Pid", "PPid", "TracerPid"):
        fields[key] = ids.of(fields[key])
    for key in ("NStgid", "NSpid", "NSpgid", "NSsid"):
        fields[key] = ids.inwards(fields[key])
    return fields


def limits(data):
    rows = {}
    for line in text(data).split("\n")[1:]:
        if line.startswith("Max "):
            rows[line[4:26].strip()] = line[26:].split()[:2]
    return rows


def timers(data, ids):
    found, current = {}, {}
    for line in text(data).split("\n"):
        key, _, value = line.partition(": ")
        if key == "ID":
            current = found[value] = {}
        elif key == "notify":
            how, _, number = value.partition(".")
            current[key] = [how, ids.of(number)]
        elif key:
            current[key] = value
    return found


def auxv(data):
    pairs = struct.unpack(f"{len(data) // 8}Q", data[:len(data) // 8 * 8])
    return {str(k): hex(v) for k, v in zip(pairs[::2], pairs[1::2], strict=False) if k}


def namespaces(base, devices):
    """Equal to the reader's own, or a number of the kernel's choice."""
    found = {}
    for name in sorted(os.listdir(f"{base}/ns")):
        link = read_link(f"{base}/ns/{name}")
        own = read_link(f"/proc/self/ns/{name.removesuffix('_for_children')}")
        found[name] = "the reader's" if link == own else {"$id": f"namespace {link}"} if isinstance(link, str) else link
    return found


def link(path, devices):
    """Text of a link, and which file it leads to."""
    target = read_link(path)
    found = attempt(os.stat, path)
    if not isinstance(found, os.stat_result):
        return {"text": target, "file": found}
    return {"text": target, "file": devices.inode(found.st_dev, found.st_ino, found.st_nlink == 0), "mode": oct(found.st_mode)}


def plain_files(base, skipped):
    """Every file that has no reader of its own, as text (long ones as a digest)."""
    found = {}
    for name in sorted(os.listdir(base)):
        if name in skipped or name in LINKS or name in DIRECTORIES:
            continue
        value = read_text(f"{base}/{name}")
        if isinstance(value, str) and len(value) > 1000:
            value = "sha256 " + hashlib.sha256(value.encode()).hexdigest()
        found[name] = value
    return found


def attributes(base):
    """Security labels."""
    found = {}
    for directory, _, names in os.walk(f"{base}/attr"):
        for name in names:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, f"{base}/attr")] = read_text(path)
    return found


def thread(pid, tid, ids, devices):
    base = f"/proc/{pid}/task/{tid}"
    try:
        facts = {"stat": stat(read(f"{base}/stat"), ids), "status": status(read(f"{base}/status"), ids)}
    except OSError as e:
        return error(e)
    if facts["stat"]["state"] == "Z":
        return facts
    # The children are in the tree itself; comm is in stat; auxv and the like belong to the process.
    facts["children"] = sorted((ids.of(c) for c in str(read_text(f"{base}/children")).split()), key=str)
    files = plain_files(base, {**SKIPPED, "children": ""})
    facts["files"] = {k: v for k, v in files.items() if k not in ("auxv", "environ", "cmdline", "cgroup")}
    facts["cgroup"] = cgroup(base)
    facts["links"] = {name: link(f"{base}/{name}", devices) for name in LINKS}
    facts["ns"] = attempt(namespaces, base, devices)
    facts["attr"] = attributes(base)
    facts["sched"] = attempt(sched_attributes, tid)
    facts["affinity"] = sorted(attempt(os.sched_getaffinity, tid))
    facts["io_priority"] = attempt(io_priority, tid)
    facts["robust_list"] = attempt(robust_list, tid)
    facts["policies"] = attempt(policies, base)
    return facts


def policies(base):
    """Memory policies as one thread sees them: where a mapping has none of its own, that of the thread is shown."""
    return sorted({line.split()[1] for line in text(read(f"{base}/numa_maps")).split("\n") if line.strip()})


def cgroup(base):
    lines = read_text(f"{base}/cgroup")
    if not isinstance(lines, str):
        return lines
    return {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines.split("\n") if line)}


def process(pid, ids, devices):
    """Facts of a process, without threads, memory and descriptors."""
    base = f"/proc/{pid}"
    facts = {"stat": stat(read(f"{base}/stat"), ids), "status": status(read(f"{base}/status"), ids)}
    if facts["stat"]["state"] == "Z":
        return facts
    facts["limits"] = limits(read(f"{base}/limits"))
    data = attempt(read, f"{base}/timers")
    facts["timers"] = timers(data, ids) if isinstance(data, bytes) else data
    data = attempt(read, f"{base}/auxv")
    facts["auxv"] = auxv(data) if isinstance(data, bytes) else data
    facts["files"] = plain_files(base, {**SKIPPED, "auxv": "", "cgroup": ""})
    facts["cgroup"] = cgroup(base)
    facts["links"] = {name: link(f"{base}/{name}", devices) for name in LINKS}
    facts["ns"] = attempt(namespaces, base, devices)
    return facts
