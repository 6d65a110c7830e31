//! bash running a pipeline: subshells, pipes, tee, awk, grep.

use super::stage::{Program, fixture};

const BASH: Program = Program {
    name: "bash",
    needs: &[("/bin/bash", "bash")],
    user: "",
    prepare: |_| Ok(()),
    command: |stage| ["/bin/bash", &fixture("pipeline.sh"), &stage.text("")].map(str::to_owned).to_vec(),
};

super::program!(BASH);
