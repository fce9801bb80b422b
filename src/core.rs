//! The rooms that are functions of values: no client, no clock, no environment.
//!
//! They are a crate of their own, so that the build script checks `pod-definitions/` with the same rules as the function.

pub mod buildkite {
    //! What Buildkite says of a job.

    pub mod event;
    pub mod job;
    pub mod rules;
    pub mod state;
    pub mod token;
}
pub mod json;
pub mod kubernetes {
    //! What the API server says of Jobs and pods.

    pub mod events;
    pub mod jobs;
    pub mod pods;
    mod token_secret;
}
pub mod pod {
    //! What a job runs in: the pod definition that its step chose, what the step changes in it, and the Job around it.

    mod agent_options;
    pub mod attempt;
    mod check;
    pub mod definition;
    mod duration;
    mod fargate;
    mod field;
    mod image;
    mod image_reference;
    pub mod job;
    pub mod metadata;
    mod node;
    pub mod quantity;
    mod resources;
}
pub mod stack;
pub mod sweep {
    //! What the sweep does about jobs that wait and Jobs that ended: from what was seen to the steps.

    mod blocked;
    mod brake;
    mod detail;
    mod explanation;
    pub mod finding;
    pub mod obstacle;
    pub mod plan;
    pub mod seen;

    #[cfg(test)]
    mod tests;
}
pub mod text;
