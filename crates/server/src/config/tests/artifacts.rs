//! Where files are kept.

use crate::artifacts::Variables;

use super::*;

const MINIO: &str = "url = \"s3://videos/a/b/\"\nendpoint = \"https://minio:9000/\"\n";

fn bucket(text: &str) -> Option<crate::artifacts::Bucket> {
    load_file(&format!("[artifacts]\n{text}")).artifacts.bucket(Variables::default())
}

#[test]
fn files_are_in_the_data_directory_unless_a_bucket_is_named() {
    assert!(bucket("").is_none());
    let aws = bucket("url = \"s3://videos\"\nregion = \"eu-central-1\"").expect("a bucket");
    assert_eq!((&*aws.name, &*aws.prefix, aws.path_style), ("videos", "", false));
    let minio = bucket(MINIO).expect("a bucket");
    assert_eq!((&*minio.prefix, minio.path_style), ("a/b", true));
    assert_eq!(minio.to_string(), "s3://videos/a/b at https://minio:9000");
    let oss = bucket(&format!("{MINIO}path_style = false")).expect("a bucket");
    assert!(!oss.path_style);
    let variable = with_variables(&[("RAYREEL_ARTIFACTS__URL", "s3://videos/x")]);
    let settings = Settings::load(&variable).expect("right");
    assert_eq!(settings.artifacts.url.expect("set").to_string(), "s3://videos/x");
}

#[test]
fn what_is_wrong_with_a_bucket_is_told_with_its_place() {
    for (text, told) in [
        ("url = \"videos\"", "`videos` is not the address of a bucket; write it as s3://bucket"),
        ("url = \"s3://v\"", "`s3://v` is not the address of a bucket"),
        ("url = \"s3://videos//a\"", "`s3://videos//a` is not the address"),
        ("url = \"s3://videos/../a\"", "`s3://videos/../a` is not the address"),
        ("url = \"s3://Videos\"", "`s3://Videos` is not the address"),
        ("endpoint = \"minio:9000\"", "`minio:9000` is not the address of a service"),
        ("endpoint = \"https://a:b@minio\"", "is not the address of a service"),
        ("endpoint = \"http://minio:9000\"", "set `artifacts.allow_http = true` if they may"),
        ("public_endpoint = \"http://minio\"", "set `artifacts.allow_http = true` if they may"),
        ("part_bytes = 5_000_000", "artifacts.part_bytes: "),
        ("signed_seconds = 0", "artifacts.signed_seconds: "),
        (
            "url = \"s3://videos\"\nsigned_seconds = 3601",
            "artifacts.signed_seconds: 3601 is above `garbage_after_seconds`, 3600",
        ),
        ("pathstyle = true", "did you mean `artifacts.path_style`?"),
    ] {
        let error = file_error(&format!("[artifacts]\n{text}"));
        assert!(error.contains(told), "{text}: {error}");
    }
    bucket("url = \"s3://videos\"\nendpoint = \"http://minio:9000\"\nallow_http = true")
        .expect("a bucket");
}
