//! Containers: who they belong to, as far as the paths of their cgroups tell.

use crate::proc::table::Row;

/// Name of a container as its runtime writes it into the path of its cgroup.
pub fn name(row: &Row) -> Option<String> {
    const MARKS: [(&str, &str, &str); 8] = [
        ("docker", "docker-", ".scope"),
        ("podman", "libpod-", ".scope"),
        ("cri-o", "crio-", ".scope"),
        ("containerd", "cri-containerd-", ".scope"),
        ("lxc", "lxc.payload.", ""),
        ("nspawn", "machine-", ".scope"),
        ("podman", "libpod_parent", ""),
        ("systemd-nspawn", "systemd-nspawn@", ".service"),
    ];
    row.cgroups.iter().find_map(|line| {
        let path = std::str::from_utf8(&line.path.0).ok()?;
        let steps: Vec<&str> = path.split('/').collect();
        let marked = steps.iter().find_map(|step| {
            let of = |(runtime, prefix, suffix): &(&str, &str, &str)| {
                let id = step.strip_prefix(prefix)?.strip_suffix(suffix)?;
                (!id.is_empty()).then(|| format!("{runtime}/{}", short(id)))
            };
            MARKS.iter().find_map(of)
        });
        // cgroupfs drivers: /docker/ID, /kubepods/burstable/podUID/ID.
        marked.or_else(|| {
            let id = steps.last().filter(|s| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit()))?;
            let runtime = if steps.contains(&"docker") { "docker" } else { "container" };
            Some(format!("{runtime}/{}", short(id)))
        })
    })
}

/// Long hexadecimal ids as runtimes shorten them.
fn short(id: &str) -> &str {
    if id.len() == 64 { id.get(..12).unwrap_or(id) } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{cgroup::Line, table::tests::row};

    fn at(mut row: Row, path: &str) -> Row {
        row.cgroups.push(Line {
            hierarchy: 0,
            controllers: String::new(),
            path: path.as_bytes().into(),
            deleted: false,
        });
        row
    }

    #[test]
    fn names_of_containers() {
        let name = |path: &str| super::name(&at(row(5, 1, 5), path));
        let id = "ab".repeat(32);
        assert_eq!(name(&format!("/system.slice/docker-{id}.scope")).unwrap(), "docker/abababababab");
        assert_eq!(name(&format!("/kubepods/besteffort/pod1/{id}")).unwrap(), "container/abababababab");
        assert_eq!(name("/lxc.payload.web").unwrap(), "lxc/web");
        assert_eq!(name("/machine.slice/machine-x.scope").unwrap(), "nspawn/x");
        assert_eq!(name("/system.slice/x.service"), None);
    }
}
