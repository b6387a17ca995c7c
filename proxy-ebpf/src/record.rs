//! Every exit of a program: counted and recorded here, and nowhere else.

use crate::maps::{COUNTERS, VERDICT};
use proxy_common::abi::{Reason, VerdictRecord};
use proxy_common::lb::Verdict;

#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element; programs of one hook do not interrupt each other on a CPU, and a lost count of
        // two hooks that do is a lost count.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub(crate) fn record(verdict: &Verdict) {
    count(verdict.reason);
    if let Some(record) = VERDICT.get_ptr_mut(0) {
        let value = VerdictRecord {
            action: verdict.action,
            reason: verdict.reason,
            ifindex: verdict.ifindex,
            backend: verdict.backend,
        };
        // SAFETY: this CPU's own element.
        unsafe { *record = value };
    }
}
