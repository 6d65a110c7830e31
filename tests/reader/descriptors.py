"""Descriptors: links, fdinfo, and what fcntl, ioctl and getsockopt say of a duplicate (pidfd_getfd)."""

import fcntl
import functools
import os
import re
import socket
import stat
import struct
import termios

from kernel import attempt, error, kcmp, pidfd_getfd, read, read_link, text

FCNTL = {"flags": 3, "signal": 11, "lease": 1025, "pipe_size": 1032, "seals": 1034}
OPTIONS = {name: getattr(socket, name) for name in dir(socket) if re.fullmatch(r"SO_[A-Z]+", name)}
# Not state: counters, and options that describe the other end or the moment.
for volatile in ("SO_ERROR", "SO_PEERSEC", "SO_PEERCRED", "SO_INCOMING_CPU"):
    OPTIONS.pop(volatile, None)
TCP_OPTIONS = {n: getattr(socket, n) for n in dir(socket) if re.fullmatch(r"TCP_[A-Z_]+", n) and n not in ("TCP_INFO", "TCP_FASTOPEN")}
IP_OPTIONS = {n: getattr(socket, n) for n in ("IP_TOS", "IP_TTL", "IP_TRANSPARENT")}


def fdinfo(data, ids, devices):
    """Lines by key; lines that repeat (epoll, inotify, locks) as sorted lists."""
    facts = {}
    for line in text(data).split("\n"):
        if line.startswith("tfd:"):
            facts.setdefault("epoll", []).append(epoll(line, devices))
        elif line.startswith("inotify wd:"):
            facts.setdefault("inotify", []).append(inotify(line, devices))
        elif line.startswith("lock:"):
            facts.setdefault("locks", []).append(lock(line, ids, devices))
        elif ":" in line:
            key, _, value = line.partition(":")
            facts[key] = value.strip()
    if "mnt_id" in facts:
        facts["mnt_id"] = {"$id": "mount " + facts["mnt_id"]}
    if "Pid" in facts:
        facts["Pid"] = ids.of(facts["Pid"])
    if "NSpid" in facts:
        facts["NSpid"] = ids.inwards(facts["NSpid"])
    facts.pop("ino", None)  # stat has it
    if "eventfd-id" in facts:
        facts["eventfd-id"] = {"$id": "eventfd " + facts["eventfd-id"]}
    for key in ("it_value", "it_interval"):
        if key in facts:
            seconds, nanoseconds = re.findall(r"\d+", facts[key])
            facts[key] = int(seconds) * 10**9 + int(nanoseconds)
    for key in ("epoll", "inotify", "locks"):
        facts.get(key, []).sort(key=lambda entry: [str(v) for v in entry.values() if not isinstance(v, dict)])
    return facts


def pairs(line):
    return dict(re.findall(r"(\S+?): *(\S*)", line))


def kernel_device(digits):
    value = int(digits, 16)
    return os.makedev(value >> 20, value & 0xFFFFF)


def epoll(line, devices):
    p = pairs(line)
    found = {"fd": p["tfd"], "events": p["events"], "data": p["data"]}
    if "ino" in p:
        found["file"] = devices.inode(kernel_device(p["sdev"]), int(p["ino"], 16))
    return found


def inotify(line, devices):
    p = pairs(line.removeprefix("inotify "))
    # The handle holds the inode's number and generation: on file systems of this host as good as the inode itself.
    return {"wd": p["wd"], "mask": p["mask"], "file": devices.inode(kernel_device(p["sdev"]), int(p["ino"], 16))}


def lock(line, ids, devices):
    _, _, kind, level, mode, pid, file, start, end = line.split()
    major, minor, inode = file.split(":")
    file = devices.inode(os.makedev(int(major, 16), int(minor, 16)), int(inode))
    return {"kind": kind, "level": level, "mode": mode, "pid": ids.of(pid), "file": file, "start": start, "end": end}


def get_owner(fd, ids):
    kind, pid = struct.unpack("ii", fcntl.fcntl(fd, 16, bytes(8)))
    return [kind, ids.of(pid)]


def get_int(fd, request):
    return struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0]


def socket_facts(fd, ids):
    with socket.socket(fileno=os.dup(fd)) as s:
        facts = {"family": int(s.family), "type": int(s.type), "protocol": s.proto}
        facts["name"], facts["peer"] = attempt(s.getsockname), attempt(s.getpeername)
        facts["options"] = {n: attempt(s.getsockopt, socket.SOL_SOCKET, o, 64) for n, o in OPTIONS.items()}
        if s.family in (socket.AF_INET, socket.AF_INET6):
            facts["ip"] = {n: attempt(s.getsockopt, socket.IPPROTO_IP, o) for n, o in IP_OPTIONS.items()}
            if s.type == socket.SOCK_STREAM:
                facts["tcp"] = {n: attempt(s.getsockopt, socket.IPPROTO_TCP, o, 64) for n, o in TCP_OPTIONS.items()}
                facts["tcp_state"] = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if s.family == socket.AF_UNIX:
            creds = attempt(s.getsockopt, socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if isinstance(creds, bytes):
                pid, uid, gid = struct.unpack("iII", creds)
                facts["peer_creds"] = [ids.of(pid), uid, gid]
        # Between two ends of TCP data goes on by itself while the programs stand still: a name of its own, for the allow-list.
        tcp = s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM
        queues = {"unread": attempt(get_int, fd, 0x541B), "unsent": attempt(get_int, fd, 0x5411)}
        facts.update({"tcp_queues": queues} if tcp else queues)
    return plain(facts)


def plain(value):
    """JSON has no bytes and no tuples."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def modes(fd):
    try:
        return termios.tcgetattr(fd)
    except termios.error as e:  # not an OSError
        raise OSError(*e.args) from e


def terminal_facts(fd, ids):
    facts = {"termios": plain(attempt(modes, fd))}
    size = attempt(fcntl.ioctl, fd, termios.TIOCGWINSZ, bytes(8))
    facts["size"] = struct.unpack("4H", size) if isinstance(size, bytes) else size
    for name, request in (("foreground", termios.TIOCGPGRP), ("session", 0x5429)):
        number = attempt(get_int, fd, request)
        facts[name] = ids.of(number) if isinstance(number, int) else number
    return plain(facts)


def duplicate_facts(fd, mode, link, ids):
    facts = {name: attempt(fcntl.fcntl, fd, command) for name, command in FCNTL.items()}
    facts["owner"] = attempt(get_owner, fd, ids)
    if stat.S_ISSOCK(mode):
        facts["socket"] = socket_facts(fd, ids)
    elif stat.S_ISFIFO(mode):
        facts["unread"] = attempt(get_int, fd, 0x541B)
    elif stat.S_ISCHR(mode) and ("/pts/" in link or "/ptmx" in link or "/tty" in link):
        facts["terminal"] = terminal_facts(fd, ids)
    return facts


def descriptor(pid, pidfd, number, ids, devices):
    base = f"/proc/{pid}"
    link = read_link(f"{base}/fd/{number}")
    facts = {"info": fdinfo(read(f"{base}/fdinfo/{number}"), ids, devices)}
    found = os.stat(f"{base}/fd/{number}")
    deleted = found.st_nlink == 0
    kind = re.match(r"(\w+):\[\d+\]$", link)
    facts["link"] = f"{kind[1]}:[]" if kind else link
    facts["stat"] = {"mode": oct(found.st_mode), "uid": found.st_uid, "gid": found.st_gid, "links": found.st_nlink,
                     "size": found.st_size, "rdev": found.st_rdev,
                     "file": devices.inode(found.st_dev, found.st_ino, deleted or bool(kind))}
    try:
        duplicate = pidfd_getfd(pidfd, number)
    except OSError as e:
        facts["duplicate"] = error(e)
        return facts
    try:
        facts["duplicate"] = duplicate_facts(duplicate, found.st_mode, str(link), ids)
    finally:
        os.close(duplicate)
    return facts


def descriptors(pid, ids, devices):
    names = attempt(os.listdir, f"/proc/{pid}/fd")
    if not isinstance(names, list):
        return names
    pidfd = os.pidfd_open(pid)
    try:
        return {n: attempt(descriptor, pid, pidfd, int(n), ids, devices) for n in sorted(names, key=int)}
    finally:
        os.close(pidfd)


def classes(items, compare, name):
    """Groups of equal items by the kernel's own comparison, each under the name of its first member."""
    def order(a, b):
        return compare(a, b)
    groups = []
    for item in sorted(items, key=functools.cmp_to_key(order)):
        if groups and compare(groups[-1][0], item) == 0:
            groups[-1].append(item)
        else:
            groups.append([item])
    return sorted(sorted(name(i) for i in group) for group in groups)


def sharing(processes, threads, ids):
    """Which descriptors share a description, and which tasks share tables."""
    inner = ids.inner
    fds = [(p, int(fd)) for p in processes for fd in (attempt(os.listdir, f"/proc/{p}/fd") or []) if str(fd).isdigit()]
    facts = {}
    try:
        facts["file"] = classes(fds, lambda a, b: kcmp("file", a[0], b[0], a[1], b[1]), lambda f: f"{inner[f[0]]}/{f[1]}")
        facts["file"] = [group for group in facts["file"] if len(group) > 1]
    except OSError as e:
        facts["file"] = error(e)
    for kind in ("vm", "files", "fs", "sighand", "sysvsem"):
        try:
            facts[kind] = classes(threads, lambda a, b, kind=kind: kcmp(kind, a, b), lambda t: str(inner[t]))
        except OSError as e:
            facts[kind] = error(e)
    return facts
