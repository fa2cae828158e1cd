//! How the system schedules the threads of a service.

/// Threads of this process that are started from now on by this one do not interrupt others when they wake: they run when those
/// on their processor have used up their time (`SCHED_BATCH`). Their share of the processors stays the same.
///
/// # Errors
/// Why it stays as it is.
#[cfg(target_os = "linux")]
pub fn batch() -> Result<(), String> {
    use thread_priority::unix::{set_thread_priority_and_policy, thread_native_id, thread_schedule_policy};
    use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};

    let batch = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
    let now = thread_schedule_policy().map_err(|error| format!("read the policy: {error:?}"))?;
    if now != ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other) {
        // Somebody has chosen another one for us.
        return Ok(());
    }
    // The library sets a niceness with it: that which is so.
    let niceness = niceness().ok_or("the niceness cannot be read")?;
    let priorities = (0..=u8::MAX).map_while(|value| ThreadPriority::try_from(value).ok());
    let same = priorities.into_iter().find(|priority| priority.to_posix(batch) == Ok(niceness));
    let same = same.ok_or_else(|| format!("there is no priority for niceness {niceness}"))?;
    set_thread_priority_and_policy(thread_native_id(), same, batch)
        .map_err(|error| format!("set the policy: {error:?}"))
}

#[cfg(not(target_os = "linux"))]
pub fn batch() -> Result<(), String> {
    Ok(())
}

/// Of this thread.
#[cfg(target_os = "linux")]
fn niceness() -> Option<i32> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The name in parentheses may hold anything; behind it the niceness is field 19 of all.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(16)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The policy, field 41 of `/proc/thread-self/stat`.
    fn policy() -> Option<String> {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
        Some(stat.rsplit_once(')')?.1.split_whitespace().nth(38)?.to_owned())
    }

    #[test]
    fn threads_that_follow_are_batch_work_of_the_same_niceness() {
        const SCHED_BATCH: &str = "3";
        std::thread::spawn(|| {
            let before = niceness().unwrap();
            batch().unwrap();
            let child = std::thread::spawn(|| (policy(), niceness().unwrap()));
            assert_eq!(child.join().unwrap(), (Some(SCHED_BATCH.to_owned()), before));
            batch().unwrap();
        })
        .join()
        .unwrap();
    }
}
