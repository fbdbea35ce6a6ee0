//! `crosstune kernels`, with and without feature `cuda`.

use assert_cmd::Command;

/// The exit code, standard output and standard error.
fn kernels(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("crosstune").expect("the binary is built");
    let ran = command.arg("kernels").args(args).output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

#[cfg(not(feature = "cuda"))]
#[test]
fn without_the_feature_it_says_how_to_have_it() {
    let (code, stdout, stderr) = kernels(&[]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("--features cuda"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[cfg(feature = "cuda")]
mod with_the_feature {
    use serde_json::Value;

    use super::kernels;

    fn ok(args: &[&str]) -> String {
        let (code, stdout, stderr) = kernels(args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        stdout
    }

    #[test]
    fn a_report_is_compared_with_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report.json");
        let path = path.to_str().expect("UTF-8");
        let json = ok(&["pool", "--json"]);
        std::fs::write(path, &json).expect("written");
        assert_eq!(ok(&["pool", "--against", path]), "no figure differs\n");

        let mut report: Value = serde_json::from_str(&json).expect("JSON");
        let files = |key: &str| {
            let rows = report[key].as_array().expect("rows");
            rows.iter().all(|row| row["file"] == "pool") && !rows.is_empty()
        };
        assert!(files("code") && files("work"), "{report}");
        let row = &mut report["work"][0];
        let (kernel, case) = (row["kernel"].clone(), row["case"].clone());
        let (kernel, case) = (kernel.as_str().expect("text"), case.as_str().expect("text"));
        let now = row["instructions"].as_u64().expect("a count");
        row["instructions"] = (now * 2).into();
        std::fs::write(path, report.to_string()).expect("written");
        let want = format!(
            "{kernel} {case} instructions {} -> {now} (-50.0 %)\n",
            now * 2
        );
        assert_eq!(ok(&["pool", "--against", path]), want);
    }

    #[test]
    fn counts_become_times_of_cards() {
        let table = ok(&["pool_forward", "--time"]);
        let head = table.lines().next().expect("a head");
        for card in ["H100 SXM us", "A100 80 GB SXM us", "L4 us"] {
            assert!(head.contains(card), "{table}");
        }
        let times: Value = serde_json::from_str(&ok(&["pool", "--time", "--json"])).expect("JSON");
        let of_lora = times.as_array().expect("rows").iter();
        let of_lora: Vec<_> = of_lora.filter(|t| t["case"] == "lora").collect();
        let h100 = |t: &Value| t["seconds"][0].as_f64().expect("seconds");
        let parts: f64 = of_lora[1..].iter().map(|t| h100(t)).sum();
        assert!(of_lora.len() == 3 && of_lora[0]["kernel"].is_null());
        assert!((h100(of_lora[0]) - parts).abs() < 1e-12, "{of_lora:?}");
    }

    #[test]
    fn tables_and_lines_are_printed() {
        let table = ok(&["pool_forward"]);
        for part in [
            "kernels/pool.cu\n",
            "pool_forward_f16  sm_80 ",
            "pool_forward_f16  lora ",
        ] {
            assert!(table.contains(part), "{table}");
        }
        assert!(!table.contains("pool_backward"), "{table}");
        // Tests run in the checkout, where the kernels' source lies.
        let lines = ok(&["--lines", "pool_forward_f16"]);
        let read = lines.lines().find(|l| l.contains("unpack8(x, load16(inp"));
        assert!(
            read.is_some_and(|l| l.contains("kernels/pool.cu:")),
            "{lines}"
        );
    }

    #[test]
    fn mistakes_are_told_at_once() {
        let refused = |args: &[&str], has: &str| {
            let (code, stdout, stderr) = kernels(args);
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
            assert!(stderr.contains(has), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        };
        refused(
            &["none_such"],
            "kernels: found `none_such`, expected part of",
        );
        refused(&["--lines", "none_such"], "found `none_such`");
        refused(&["--against", "none.json"], "none.json: ");
        refused(&["--against", "Cargo.toml"], "Cargo.toml: is no report of");
        refused(&["--write", "none/such"], "none/such is not a folder");
        // A file's name, which two kernels hold.
        refused(&["--lines", "pool"], "lines: found `pool`, expected one of");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("kernels.md")).expect("made");
        let at = folder.path().to_str().expect("UTF-8");
        refused(&["--write", at], "kernels.md is a folder, expected a file");
        // No file can be made there, not even by root.
        refused(&["--write", "/proc"], "write: /proc: ");
    }
}
