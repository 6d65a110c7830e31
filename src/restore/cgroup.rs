//! cgroup memberships: where a restored tree lives.
