"""Mappings of a process (smaps), memory policies (numa_maps), and on demand a digest of contents."""

import hashlib
import os
import struct

from kernel import attempt, error, read, text

PAGE = 4096
CPUS = os.cpu_count()
SIZES = {"Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced",
         "Anonymous", "KSM", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb",
         "Private_Hugetlb", "Swap", "SwapPss", "Locked"}


def head(line, devices):
    addresses, perms, offset, device, inode, *name = line.split(None, 5)
    start, end = (int(a, 16) for a in addresses.split("-"))
    name = name[0] if name else ""
    major, minor = (int(n, 16) for n in device.split(":"))
    deleted = name.endswith(" (deleted)")
    file = devices.inode(os.makedev(major, minor), int(inode), deleted) if int(inode) else "none"
    return {"start": start, "end": end, "perms": perms, "offset": int(offset, 16), "file": file, "name": name}


def parse(data, devices):
    vmas = []
    for line in text(data).split("\n"):
        if not line:
            continue
        if line[0].isdigit() or line[0].islower():
            vmas.append(head(line, devices))
            continue
        key, _, value = line.partition(":")
        if key == "VmFlags":
            vmas[-1]["flags"] = " ".join(sorted(value.split()))
        elif key in SIZES:
            vmas[-1].setdefault("sizes", {})[key] = int(value.split()[0])
        elif key != "Size":
            vmas[-1][key] = value.strip()
    return vmas


def policies(data):
    """Start address -> policy of mappings that have one of their own."""
    found = {}
    for line in text(data).split("\n"):
        words = line.split()
        if len(words) > 1 and words[1] != "default":
            found[words[0]] = words[1]
    return found


def merged(vmas):
    """Neighbours that differ in nothing but their addresses count as one: the kernel joins them or not by the history
    of their pages, which no program can see otherwise."""
    found = []
    for vma in vmas:
        vma = dict(vma)
        last = found[-1] if found else None
        if last is not None and last["end"] == vma["start"] and alike(last, vma):
            for key, value in vma.get("sizes", {}).items():
                last["sizes"][key] = last["sizes"].get(key, 0) + value
            last["end"] = vma["end"]
            if "digest" in vma:
                last["digest"] += vma["digest"]
        else:
            found.append(vma)
    return found


def alike(a, b):
    if any(a.get(k) != b.get(k) for k in (a.keys() | b.keys()) - {"start", "end", "offset", "sizes", "digest"}):
        return False
    return a["file"] == "none" or a["offset"] + a["end"] - a["start"] == b["offset"]


def digest(pid, vma, mem, pagemap):
    """Pages that are not zero, with their digests.

    Of private mappings those that do not belong to the file behind them; of shared memory without a name all that the
    object has, whoever has touched it; other files hold their contents themselves."""
    if vma["perms"][3] == "p":
        return private_pages(vma, mem, pagemap)
    if not isinstance(vma["file"], dict):
        return []
    try:
        file = os.open(f"/proc/{pid}/map_files/{vma['start']:x}-{vma['end']:x}", os.O_RDONLY)
    except OSError as e:
        return [error(e)]
    try:
        return pages(file, range(vma["start"], vma["end"], PAGE), vma["offset"] - vma["start"])
    finally:
        os.close(file)


def private_pages(vma, mem, pagemap):
    total = []
    for start in range(vma["start"], vma["end"], PAGE * 512):
        end = min(vma["end"], start + PAGE * 512)
        raw = attempt(os.pread, pagemap, (end - start) // PAGE * 8, start // PAGE * 8)
        if not isinstance(raw, bytes):
            return [raw]
        entries = struct.unpack(f"{len(raw) // 8}Q", raw)
        # In memory or swapped out (bits 63, 62), and not a page of the file (bit 61).
        there = [start + n * PAGE for n, entry in enumerate(entries) if entry >> 62 & 3 and not entry >> 61 & 1]
        total += pages(mem, there, 0)
    return total


def without_rseq(page):
    """With zeros where a thread's `struct rseq` may be: the kernel writes there on which processor the thread runs.

    Found by its form (32 bytes, aligned): the same small number twice, no critical section, no flags, a small node and
    a small concurrency id."""
    words = memoryview(page).cast("I")
    found = None
    for at in range(0, len(words), 8):
        cpu = words[at]
        if cpu == words[at + 1] and cpu < CPUS and not (words[at + 2] or words[at + 3] or words[at + 4]):
            if words[at + 5] < 64 and words[at + 6] < 4096 and (cpu or words[at + 6]):
                found = found or bytearray(page)
                found[at * 4:at * 4 + 28] = bytes(28)
    return bytes(found) if found else page


def pages(file, addresses, shift):
    """[address, digest] of each page that can be read and is not zero; it lies in the file at its address plus `shift`."""
    total = []
    for address in addresses:
        page = attempt(os.pread, file, PAGE, address + shift)
        if isinstance(page, bytes) and page.strip(b"\0"):
            page = without_rseq(page)
            total.append([hex(address), hashlib.sha256(page).hexdigest()[:16]])
    return total


def memory(pid, devices, contents):
    """`contents`: also digests; the target must be quiet."""
    data = attempt(read, f"/proc/{pid}/smaps")
    if not isinstance(data, bytes):
        return data
    vmas = parse(data, devices)
    numa = attempt(read, f"/proc/{pid}/numa_maps")
    policy = policies(numa) if isinstance(numa, bytes) else {}
    if contents:
        mem, pagemap = os.open(f"/proc/{pid}/mem", os.O_RDONLY), os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        for vma in vmas:
            if not vma["name"].startswith(("[vvar", "[vsyscall", "[vdso")):
                vma["digest"] = digest(pid, vma, mem, pagemap)
        os.close(mem)
        os.close(pagemap)
    for vma in vmas:
        if found := policy.get(f"{vma['start']:08x}"):
            vma["policy"] = found
    by_range = {}
    for vma in merged(vmas):
        if "digest" in vma:
            vma["digest"] = hashlib.sha256(repr(vma["digest"]).encode()).hexdigest()
        by_range[f"{vma.pop('start'):x}-{vma.pop('end'):x}"] = vma
    return by_range
