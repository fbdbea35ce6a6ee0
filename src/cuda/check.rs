//! A quick proof that a device works, for `crosstune doctor`.

use super::{Driver, DriverError, Result, embedded};

/// Bytes that go round.
const BYTES: usize = 1 << 16;

/// Fills memory, copies into and out of it, replays a captured fill and loads every embedded
/// kernel. Returns how many kernels were loaded.
///
/// # Errors
/// The device's, or the first byte that came back wrong.
pub fn check(driver: &dyn Driver) -> Result<usize> {
    let memory = driver.alloc(BYTES, "check")?;
    let half = BYTES / 2;
    let sent: Vec<u8> = (0..half).map(|i| (i * 31 % 251) as u8).collect();
    driver.fill(memory, 0xA5, half)?;
    driver.copy_in(memory.offset(half), &sent)?;
    let mut wanted = vec![0xA5; half];
    wanted.extend(&sent);
    compare(driver, memory, &wanted)?;

    driver.begin_capture()?;
    driver.fill(memory, 0x3C, half)?;
    let graph = driver.end_capture()?;
    compare(driver, memory, &wanted)?;
    driver.replay(graph)?;
    wanted[..half].fill(0x3C);
    compare(driver, memory, &wanted)?;
    driver.free(memory)?;

    let mut n_kernels = 0;
    for file in embedded::FILES {
        let mut names: Vec<_> = file.resources().into_iter().map(|r| r.kernel).collect();
        names.sort();
        names.dedup();
        n_kernels += names.len();
        for name in names {
            driver.kernel(file, &name)?;
        }
    }
    Ok(n_kernels)
}

fn compare(driver: &dyn Driver, memory: super::DevicePtr, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    driver.copy_out(memory, &mut got)?;
    match got.iter().zip(wanted).position(|(g, w)| g != w) {
        None => Ok(()),
        Some(i) => Err(DriverError::Failed {
            call: format!("check of {}", driver.name()),
            reason: format!("byte {i} came back as {}, expected {}", got[i], wanted[i]),
        }),
    }
}
