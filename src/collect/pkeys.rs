//! Protection keys (pkeys(7)): which of them a process has allocated, the kernel only tells by giving out the others.

use super::{Cx, Result};
use crate::arch;
use crate::image::mm::Vma;
use crate::sys::XSTATE_MAX;
use crate::trace::Batch;
use crate::trace::remote::Scratch;

/// Keys there are beside 0.
const KEYS: u32 = 15;
/// The rights of a thread that has never asked for a key.
const PKRU_DEFAULT: u32 = 0x5555_5554;

/// Keys in use, a bit mask; 0 where there is no trace of any, which spares most processes the question.
pub fn in_use(cx: &mut Cx<'_>, at: usize, vmas: &[Vma], scratch: &Scratch) -> Result<u32> {
    let leader = cx.frozen.processes[at].leader();
    let mut xstate = vec![0; XSTATE_MAX];
    let len = leader.tracee().xstate(&mut xstate)?;
    xstate.truncate(len);
    let Some(rights) = arch::pkru(&xstate) else { return Ok(0) };
    if rights == PKRU_DEFAULT && vmas.iter().all(|v| v.pkey == 0) {
        return Ok(0);
    }
    let mut batch = Batch::new();
    let calls: Vec<_> = (0..KEYS).map(|_| batch.may(libc::SYS_pkey_alloc, &[0u64.into(), 0u64.into()])).collect();
    let results = leader.run(scratch, &batch)?;
    let free: Vec<u64> = calls.into_iter().filter_map(|call| results.get(call).ok()).collect();
    let mut batch = Batch::new();
    for key in &free {
        batch.may(libc::SYS_pkey_free, &[(*key).into()]);
    }
    leader.run(scratch, &batch)?;
    // Whoever allocates a key gets the rights to it.
    leader.tracee().set_xstate(&xstate)?;
    let all = (1..=KEYS).fold(0, |mask, key| mask | 1 << key);
    Ok(free.iter().fold(all, |mask, key| mask & !(1 << key)))
}
