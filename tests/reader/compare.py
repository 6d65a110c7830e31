"""Differences between two captures, but for what an allow-list permits."""

import tomllib

RULES = {
    "ignore": lambda a, b: True,
    "not-less": lambda a, b: number(b) >= number(a),
    "not-more": lambda a, b: number(b) <= number(a),
    "may-vanish": lambda a, b: b is MISSING,
    "may-appear": lambda a, b: a is MISSING,
}
MISSING = object()


def number(value):
    return int(str(value).split()[0], 0)


class Allowed:
    """Lines `path`, `rule`, `reason`. In a path `*` stands for one step and a leading `**` for any number of steps. Steps that contain
    slashes are written as a list."""

    def __init__(self, files):
        self.lines = []
        for file in files:
            with open(file, "rb") as f:
                for line in tomllib.load(f).get("allow", []):
                    if set(line) != {"path", "rule", "reason"} or not line["reason"] or line["rule"] not in RULES:
                        raise SystemExit(f"{file}: each line has path, rule and reason: {line}")
                    steps = line["path"] if isinstance(line["path"], list) else line["path"].split("/")
                    self.lines.append((steps, RULES[line["rule"]]))

    def permits(self, path, a, b):
        for pattern, rule in self.lines:
            if matches(pattern, path):
                try:
                    if rule(a, b):
                        return True
                except (ValueError, IndexError):
                    pass
        return False


def matches(pattern, path):
    if pattern[0] == "**":
        pattern = pattern[1:]
        path = path[-len(pattern):] if len(path) >= len(pattern) else path
    # A pattern permits everything below what it names.
    return len(pattern) <= len(path) and all(p in ("*", step) for p, step in zip(pattern, path, strict=False))


class Comparison:
    def __init__(self, allowed):
        self.allowed = allowed
        self.differences = []
        self.there, self.back = {}, {}

    def differ(self, path, a, b, note=""):
        if not self.allowed.permits(path, a, b):
            self.differences.append((path, a, b, note))

    def same_identity(self, a, b):
        return self.there.setdefault(a, b) == b and self.back.setdefault(b, a) == a

    def walk(self, path, a, b):
        if isinstance(a, dict) and isinstance(b, dict):
            if "$id" in a and "$id" in b:
                if not self.same_identity(a["$id"], b["$id"]):
                    self.differ(path, a, b, "another object than elsewhere")
                a, b = ({k: v for k, v in d.items() if k != "$id"} for d in (a, b))
            for key in sorted(a.keys() | b.keys(), key=str):
                self.walk([*path, key], a.get(key, MISSING), b.get(key, MISSING))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for n, (left, right) in enumerate(zip(a, b, strict=True)):
                self.walk([*path, str(n)], left, right)
        elif a is MISSING or b is MISSING or a != b:
            self.differ(path, a, b)


def show(value):
    if value is MISSING:
        return "(nothing)"
    return str(value) if len(str(value)) <= 200 else str(value)[:200] + "..."


def compare(a, b, allow_files):
    """Differences as lines of text."""
    comparison = Comparison(Allowed(allow_files))
    comparison.walk([], a, b)
    found = []
    for path, left, right, note in comparison.differences:
        found.append(f"{' / '.join(path)}: {show(left)} -> {show(right)}" + (f" ({note})" if note else ""))
    return found
