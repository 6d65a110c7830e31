//! Command lines of the EXAMPLES in the man pages. Tests run every one of them.

/// What it does, and the command line.
pub type Example = (&'static str, &'static str);

/// Examples by verb.
pub const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "check",
        &[
            ("What can this host do?", "migrate check"),
            ("What about process 4242 is in the way?", "migrate check 4242"),
        ],
    ),
    ("list", &[("What is running here that could be moved?", "migrate list")]),
    (
        "dump",
        &[
            (
                "Save process 4242 and its descendants; it ends when the image is safe on disk.",
                "migrate dump 4242 -D /var/backups/job",
            ),
            ("Save it, and let it run on.", "migrate dump 4242 -D /var/backups/job --leave-running"),
            (
                "Save only what has changed since another image.",
                "migrate dump 4242 -D /var/backups/job.2 --parent /var/backups/job.1",
            ),
            (
                "Send it through a program of your choice, without a file in between.",
                "migrate dump 4242 --stream | gpg -e -r backup > job.gpg",
            ),
        ],
    ),
    (
        "pre-dump",
        &[
            (
                "Save the memory of process 4242 ahead of a dump; it runs on.",
                "migrate pre-dump 4242 -D /var/backups/job.1",
            ),
            (
                "Add what has changed since then.",
                "migrate pre-dump 4242 -D /var/backups/job.2 --parent /var/backups/job.1",
            ),
        ],
    ),
    (
        "restore",
        &[
            ("Start it again and stay until it ends.", "migrate restore -D /var/backups/job"),
            (
                "Start it again in the background and note its process id.",
                "migrate restore -D /var/backups/job --detach --pidfile /run/job.pid",
            ),
            (
                "Start three copies of it, each with a host name of its own.",
                "migrate restore -D /var/backups/job --count 3 --detach",
            ),
            ("Would it run on this host?", "migrate restore -D /var/backups/job --dry-run"),
            ("Start it on the first of two other hosts that is ready.", "migrate restore -D /var/backups/job --on b,c"),
        ],
    ),
    (
        "move",
        &[
            ("Move process 4242 to host b through ssh.", "migrate move 4242 b"),
            (
                "Move a service, with the address its clients use.",
                "migrate move pidfile:/run/redis.pid b --move-address 192.0.2.7/24@eth0",
            ),
            ("Say what stands in the way, and stop nothing.", "migrate move 4242 b --dry-run"),
        ],
    ),
    (
        "clone",
        &[
            ("Start a copy of process 4242 on hosts b and c; it runs on.", "migrate clone 4242 b c"),
            (
                "Two copies of a service on host b, each with an address of its own on the network of eth0.",
                "migrate clone pidfile:/run/redis.pid b b --address 192.0.2.8/24@eth0 --address 192.0.2.9/24@eth0",
            ),
            ("Put three copies into the place of process 4242.", "migrate clone 4242 b c d --end-source"),
            (
                "Move it to b with its connections, and start a copy of the same moment on c.",
                "migrate clone 4242 b c --end-source --connections b",
            ),
        ],
    ),
    (
        "warm",
        &[
            ("Keep process 4242 up to date on host b, and note the id of the session.", "migrate warm 4242 b"),
            (
                "The same with a tenth of a processor and of a slow link.",
                "migrate warm 4242 b --cpu-share 10% --bandwidth 10Mbit/s",
            ),
        ],
    ),
    (
        "switch",
        &[
            ("Move it, as soon as the pause will be short enough.", "migrate switch hkqwzrtb"),
            ("Move it at once, to this host.", "migrate switch hkqwzrtb b --now"),
            ("Move it at once; what is not there yet follows.", "migrate switch hkqwzrtb --mode post-copy"),
        ],
    ),
    (
        "evacuate",
        &[
            ("What would go where, and what would stay?", "migrate evacuate 4242 --to b,c --dry-run"),
            (
                "Move it, and whatever else is named, to as few hosts as possible.",
                "migrate evacuate 4242 --to b,c --place fill",
            ),
        ],
    ),
    ("show", &[("What is in this image?", "migrate show /var/backups/job")]),
    ("verify", &[("Is this image complete and undamaged?", "migrate verify /var/backups/job")]),
    (
        "explain",
        &[("What does this code mean?", "migrate explain M0301"), ("List every code.", "migrate explain --all")],
    ),
    (
        "agent",
        &[
            ("Receive trees from hosts whose keys are in the peers file.", "migrate agent --listen tcp://:7413"),
            ("Receive trees from programs of this host.", "migrate agent --listen unix:/run/migrate/agent.sock"),
        ],
    ),
    ("keygen", &[("Make a key and print the line for the other host's peers file.", "migrate keygen")]),
    ("demo", &[("Watch a program move between two hosts made of namespaces.", "migrate demo")]),
    (
        "status",
        &[
            ("See which moves are under way or in doubt.", "migrate status"),
            ("See how the moves of the last weeks have ended.", "migrate status --all"),
            ("See how far a warm-up is, and what pause a switch would have.", "migrate status hkqwzrtb"),
        ],
    ),
    (
        "resolve",
        &[
            ("Let the copy go on that is held here.", "migrate resolve hkqwzrtb --run --yes"),
            ("End it, because the target runs on the other host.", "migrate resolve hkqwzrtb --discard --yes"),
        ],
    ),
    ("cancel", &[("End a tracker or a warm-up that is not needed any more.", "migrate cancel hkqwzrtb")]),
];
