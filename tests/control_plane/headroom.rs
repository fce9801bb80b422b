//! `docs/headroom.yaml`.

use super::*;

/// Otherwise they hold another room than a job needs, or a node without its image, or a job cannot take their place.
#[tokio::test]
async fn the_pods_have_image_and_requests_of_the_default_definition_and_less_priority_than_its_jobs() {
    let mut namespace = Namespace::enforcing("restricted").await;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/headroom.yaml");
    namespace.control_plane.apply(manifest, &namespace.name).await.unwrap();
    let pod = eventually("there is no pod", async || namespace.list("pods").await.into_iter().next()).await;
    let default = compiled().into_iter().find(|manifest| name(manifest) == "default").unwrap();
    let (headroom, agent) = (&pod["spec"]["containers"][0], &default["template"]["spec"]["containers"][0]);
    assert_eq!(
        (&headroom["image"], &headroom["resources"]["requests"]),
        (&agent["image"], &agent["resources"]["requests"])
    );
    assert_eq!(
        (&pod["spec"]["priority"], &default["template"]["spec"]["priorityClassName"]),
        (&json!(-10), &Value::Null)
    );
}
