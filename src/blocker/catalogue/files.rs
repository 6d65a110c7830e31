//! M05 files and mounts, M06 namespaces and cgroups, M10 image.

use super::table;

table! { FILES:
    FILE_CHANGED = 501, "file differs from the one that was open",
        object: "a path with size and modification time, then and now",
        why: "The program holds offsets, buffers and mappings that fit the file as it was.",
        remedy: "bring the file back to what it was, or --files skip; a move copies it with --files copy",
        kernel: "all";
    FILE_MISSING = 502, "file does not exist here",
        object: "a path that the program has open, mapped, or as executable, root or working directory",
        why: "A file is opened again by its name.",
        remedy: "copy it to the same path on this host; a move does so with --files copy",
        kernel: "all";
    DISK_SPACE = 503, "not enough space for the image",
        object: "the file system of the image, with the bytes needed and free",
        why: "A dump into a full disk would fail half-way.",
        remedy: "free space, choose another directory, or use --stream or --compress 3",
        kernel: "all";
    DIRECTORY_REMOVED = 504, "directory was removed",
        object: "a working directory or root that has no name any more",
        why: "A restored program could not be put into it.",
        remedy: "create the directory again and let the program change into it (mkdir, cd)",
        kernel: "all";
    FILE_HIDDEN = 505, "file cannot be reached by its name",
        object: "an open file on a detached mount, below another mount, or outside the root of the program",
        why: "A file is opened again by its name in the program's own view.",
        remedy: "unmount what hides it, or let the program close it",
        kernel: "all";
    CODE_DIFFERS = 506, "program or library differs",
        object: "a mapped executable or library and its digests on both sides",
        why: "Pages that the program has not written to are read again from the file: other code would run in the middle of a function.",
        remedy: "install the same package version on both hosts, or --files skip if you know that it fits",
        kernel: "all";
    MOUNT_OUTSIDE = 507, "mount from outside",
        object: "a mount of the target's mount namespace whose source is not inside it: a bind mount, a device",
        why: "Where it should come from on the destination is not known.",
        remedy: "unmount it, or have the same path on the destination",
        kernel: "all";
    FILE_ACCESS = 508, "file cannot be opened the same way here",
        object: "a path, the access mode and the error",
        why: "The file system is mounted read-only, or the user may not open it.",
        remedy: "repair permissions or remount read-write on the destination",
        kernel: "all";
    GHOST_SIZE = 509, "deleted file is too large",
        object: "a file that was deleted while open, with its size",
        why: "Its content has to travel in the image.",
        remedy: "let the program close it (log files: reopen), then try again",
        kernel: "all";
    FILE_SPACE = 510, "not enough space for files that come along",
        object: "the first path on a file system of the destination, with the bytes that are to come and those that are free",
        why: "Files are there completely before the target runs, beside what they replace.",
        remedy: "free space there, or ship less (--files, --with)",
        kernel: "all";
    FILE_PLACE = 511, "file cannot come to its place",
        object: "a path that is to be copied and what is in the way at the destination",
        why: "What comes from another host is put below real directories only, and a whole tree is put in the place of another one.",
        remedy: "make the path the same on both hosts; of a mount point, name the directories in it",
        kernel: "all";
}

table! { NAMESPACES:
    NAMESPACE_KIND = 601, "namespace of its own that cannot be made",
        object: "a namespace of the tree; its kind is named",
        why: "This kind of namespace, or its setting, is not saved yet.",
        remedy: "start the program without it, or stop it and start it on the destination",
        kernel: "all";
    USERNS_NESTED = 602, "user namespace that begins inside the tree",
        object: "a user namespace that was made in another one than the host's",
        why: "Only the first task of a user namespace keeps its id outside when it is made again.",
        remedy: "name the task in the inner namespace as the target",
        kernel: "all";
    PIDNS_NESTED = 603, "PID namespace that begins inside the tree",
        object: "a task that sees itself with another id than its relatives do",
        why: "Each level has ids of its own, which are not all saved yet.",
        remedy: "name the first process of the inner namespace as the target",
        kernel: "all";
    CLOCK_BACK = 604, "monotonic clock would go back",
        object: "the destination's CLOCK_MONOTONIC or CLOCK_BOOTTIME against the target's",
        why: "Programs hang or fail when this clock goes back. A time namespace would prevent it, and one cannot be made here.",
        remedy: "run as root on a kernel with CONFIG_TIME_NS, or choose a host that has run longer",
        kernel: "time namespaces since 5.6";
    NAMESPACE_LIMIT = 605, "no new namespace allowed here",
        object: "a limit in /proc/sys/user, or an error of unshare",
        why: "The target needs a namespace of its own and the host allows no more.",
        remedy: "raise user.max_KIND_namespaces, or run as root",
        kernel: "all";
    CGROUP_MISSING = 606, "cgroup does not exist here and cannot be made",
        object: "the path named by --cgroup",
        why: "A restored tree has to be in its cgroup before its first page.",
        remedy: "mkdir the cgroup, or use --cgroup scope",
        kernel: "all";
    CGROUP_ACCESS = 607, "no cgroup can be made here",
        object: "the place for a new cgroup and the error",
        why: "A restored tree must not stay in the cgroup of the command, of the agent or of the ssh session, and pages never change their cgroup.",
        remedy: "run as root, or have systemd delegate one (systemd-run --user --scope -p Delegate=yes)",
        kernel: "all";
    IPC_OBJECTS = 608, "System V semaphores or queues of the host",
        object: "a task with SEM_UNDO values, or System V objects in the host's own IPC namespace",
        why: "Who else uses them is not known, and undo values cannot be read back.",
        remedy: "run the program in an IPC namespace of its own (unshare --ipc)",
        kernel: "all";
    NETNS_OUTSIDE = 609, "network namespace of another program",
        object: "a network namespace that processes outside the tree use as well",
        why: "Interfaces, addresses and rules are used by the others, too.",
        remedy: "move the others along, or start the restore inside the wanted namespace (nsenter --net)",
        kernel: "all";
    MOUNT_KIND = 610, "mount that cannot be made again",
        object: "a mount of the target's mount namespace: file-system type and path",
        why: "The file system has state of its own (FUSE, overlay with unreachable layers, autofs).",
        remedy: "unmount it, then try again",
        kernel: "all";
    CGROUP_FROZEN = 611, "cgroup is frozen by someone else",
        object: "a frozen cgroup of the target, where we may not thaw it for a moment",
        why: "The tasks cannot be brought to run a single system call until the cgroup is thawed.",
        remedy: "thaw it first (docker unpause, echo 0 > cgroup.freeze)",
        kernel: "all";
}

table! { IMAGE:
    IMAGE_INCOMPLETE = 1001, "image is not complete",
        object: "a directory without a manifest, or a file that the manifest names and that is not there or is too short",
        why: "A dump that is cut off leaves no manifest; or something has removed or truncated a file later.",
        remedy: "use another image; if it was copied, copy it again",
        kernel: "all";
    IMAGE_DAMAGED = 1002, "image is damaged",
        object: "the file, its section or page, and the digests",
        why: "A checksum does not fit, or a reference points nowhere. Nothing is started from wrong memory.",
        remedy: "use another image; migrate verify DIR lists all damage",
        kernel: "all";
    IMAGE_VERSION = 1003, "image of a newer version",
        object: "the version of the image and the newest one this program reads",
        why: "It may hold state that this program does not know.",
        remedy: "install the version of migrate that wrote it, or a newer one",
        kernel: "all";
    PARENT_MISSING = 1004, "parent image is missing",
        object: "the path of the image that this one adds to",
        why: "An incremental image holds the pages that changed; the others are in its parents.",
        remedy: "bring the parent back to its place beside this image",
        kernel: "all";
    IMAGE_EXISTS = 1005, "there is an image already",
        object: "the directory",
        why: "An image is never overwritten unasked.",
        remedy: "choose another directory, or --force",
        kernel: "all";
    PARENT_OTHER = 1006, "parent image is of another tree",
        object: "the parent, its tree and the target",
        why: "Pages can only be compared within one tree.",
        remedy: "name the last image of this very target, or leave --parent out",
        kernel: "all";
    IMAGE_TRUST = 1007, "image could have been changed by others",
        object: "a directory or file of the image that other users may write to",
        why: "Who writes an image decides what runs, and as which user, when it is restored.",
        remedy: "chown and chmod the image (0700) after checking where it comes from",
        kernel: "all";
    DIRECTORY_USED = 1008, "directory holds other files",
        object: "the directory and one of the files",
        why: "An image replaces its directory as a whole; other files in it would be lost.",
        remedy: "choose a new or empty directory",
        kernel: "all";
}
