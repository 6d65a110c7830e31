"""What stands for numbers that a restored tree need not have again.

`{"$pid": N}`  a process, thread, group or session id, as the root of the tree sees it in its own PID namespace.
`{"$outside": N}`  such an id that belongs to nothing in the tree, as this reader sees it.
`{"$id": TEXT}`  a number of the kernel's choice (inode of a pipe, id of a mount): equal if a one-to-one relation between
all such numbers before and after exists.
"""

import os

from kernel import attempt, read, text


def parse_status(data):
    pairs = (line.partition(":") for line in text(data).split("\n") if ":" in line)
    return {key: value.strip() for key, _, value in pairs}


def numbers(words):
    return [int(w) for w in words.split()]


class Ids:
    """Translates ids of this reader's PID namespace into those of the tree's root."""

    def __init__(self, root, tasks):
        """`tasks`: status of every thread of the tree, by thread id."""
        self.level = len(numbers(tasks[root]["NSpid"])) - 1
        self.inner = {}
        for status in tasks.values():
            for key in ("NSpid", "NStgid", "NSpgid", "NSsid"):
                ids = numbers(status[key])
                if len(ids) > self.level and ids[self.level] != 0:
                    self.inner[ids[0]] = ids[self.level]

    def of(self, number):
        number = int(number)
        if number in self.inner:
            return {"$pid": self.inner[number]}
        return number if number <= 0 else {"$outside": number}

    def inwards(self, words):
        """A list over PID namespaces, from the root's own inwards."""
        return numbers(words)[self.level:]


class Devices:
    """Knows which file systems are the kernel's own, so that their inodes mean nothing beyond identity."""

    def __init__(self):
        self.mounted = {}

    def see(self, mountinfo):
        """Learns from the lines of a mountinfo file."""
        for line in mountinfo:
            major, minor = line["device"].split(":")
            self.mounted[os.makedev(int(major), int(minor))] = line["fs_type"]

    def inode(self, device, inode, deleted=False):
        fs_type = self.mounted.get(device)
        if deleted or fs_type in (None, "proc", "mqueue", "nsfs") and os.major(device) == 0:
            return {"$id": f"inode {device}:{inode}"}
        return f"{os.major(device)}:{os.minor(device)} {inode}"


def tree(root):
    """Process ids of the root and all its descendants, ascending."""
    children = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        data = attempt(read, f"/proc/{name}/stat")
        if isinstance(data, bytes):
            parent = int(data[data.rindex(b")") + 2:].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, []))
    return sorted(found)


def tids(pid):
    return sorted(int(t) for t in os.listdir(f"/proc/{pid}/task"))
