//! A value with an age: read when it is first needed, kept, and refreshed by the first event that finds it too old.
//!
//! Lambda freezes a function between two events, so nothing can be refreshed in the background. The old value worked until
//! now, so an event waits only a short time for a new one.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{clock, deadline::Deadline, text::chain};

/// How long an event waits for a refresh while there is an old value.
pub const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);

/// No refresh for this long after one that failed, so that a burst of events does not wait for each other's timeouts.
pub const REFRESH_PAUSE: Duration = Duration::from_secs(30);

/// A value and how old it may be.
///
/// One caller reads at a time. A caller who waited for that gets the same answer, also if it is the error.
pub struct Kept<T, E> {
    name: &'static str,
    max_age: Duration,
    ends_old: fn(&E) -> bool,
    state: Mutex<State<T, E>>,
    /// Locked while a caller reads.
    reading: tokio::sync::Mutex<()>,
}

struct State<T, E> {
    /// The value and when it was read.
    value: Option<(T, Instant)>,
    /// The error of the last read, and its time. `None` if that read succeeded.
    failure: Option<(Arc<E>, Instant)>,
    /// How many reads have ended.
    reads: u64,
}

impl<T: Clone, E: Error> Kept<T, E> {
    /// No value yet. `name` stands in the log when a refresh fails.
    pub fn new(name: &'static str, max_age: Duration) -> Self {
        let state = Mutex::new(State { value: None, failure: None, reads: 0 });
        Self { name, max_age, ends_old: |_| false, state, reading: tokio::sync::Mutex::default() }
    }

    /// An error of this kind proves that the old value is of no use.
    #[must_use]
    pub fn until(self, ends_old: fn(&E) -> bool) -> Self {
        Self { ends_old, ..self }
    }

    /// The value. If it is too old, it is refreshed; if that fails, the old one stays in use. A first read that fails is an
    /// error, and the next caller tries again.
    pub async fn get(&self, deadline: Deadline, read: impl AsyncFnOnce(Deadline) -> Result<T, E>) -> Result<T, Arc<E>> {
        let has_value = self.state().value.is_some();
        let deadline = if has_value { deadline.within(REFRESH_TIMEOUT) } else { deadline };
        let is_fresh = |_: &T, time: Instant| time.elapsed() < self.max_age;
        self.fresh(is_fresh, deadline, read).await.or_else(|error| self.state().old().ok_or(error))
    }

    /// The value, if it and the time of its read are fresh enough for the caller; else a new one. Here a failed refresh is an error: the
    /// old value cannot answer the caller's question.
    pub async fn fresh(
        &self,
        is_fresh: impl FnOnce(&T, Instant) -> bool,
        deadline: Deadline,
        read: impl AsyncFnOnce(Deadline) -> Result<T, E>,
    ) -> Result<T, Arc<E>> {
        let reads = match self.state().answer(is_fresh) {
            Ok(answer) => return answer,
            Err(reads) => reads,
        };
        let _reading = self.reading.lock().await;
        if self.state().reads != reads {
            return self.state().last();
        }
        let read = read(deadline).await.map_err(Arc::new);
        self.ended(&read);
        read
    }

    /// The value, however old.
    pub fn last(&self) -> Option<T> {
        self.state().old()
    }

    fn ended(&self, read: &Result<T, Arc<E>>) {
        let mut state = self.state();
        state.reads += 1;
        match read {
            Ok(value) => (state.value, state.failure) = (Some((value.clone(), clock::monotonic())), None),
            Err(error) => {
                state.failure = Some((Arc::clone(error), clock::monotonic()));
                if (self.ends_old)(error) {
                    state.value = None;
                } else if state.value.is_some() {
                    tracing::warn!(error = chain(error), "cannot refresh {}; the old value stays in use", self.name);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone, E> State<T, E> {
    /// The answer without a read; where a read is needed, the number of those that have ended.
    fn answer(&self, is_fresh: impl FnOnce(&T, Instant) -> bool) -> Result<Result<T, Arc<E>>, u64> {
        let (value, read) = self.value.as_ref().ok_or(self.reads)?;
        if is_fresh(value, *read) {
            return Ok(Ok(value.clone()));
        }
        let recent = self.failure.as_ref().filter(|(_, failed)| failed.elapsed() < REFRESH_PAUSE);
        recent.map(|(error, _)| Err(Arc::clone(error))).ok_or(self.reads)
    }

    /// The answer of the last read; there was one.
    fn last(&self) -> Result<T, Arc<E>> {
        match (&self.failure, &self.value) {
            (None, Some((value, _))) => Ok(value.clone()),
            (Some((error, _)), _) => Err(Arc::clone(error)),
            (None, None) => unreachable!("a read ends with a value or with an error"),
        }
    }

    fn old(&self) -> Option<T> {
        self.value.as_ref().map(|(value, _)| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{
        join,
        time::{advance, sleep},
    };

    use super::*;

    const AGE: Duration = Duration::from_mins(1);

    #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
    enum Failure {
        #[error("not now")]
        MayPass,
        #[error("never again")]
        Final,
    }

    /// Something that is read, and how often it was.
    struct Source {
        kept: Kept<usize, Failure>,
        reads: AtomicUsize,
    }

    impl Source {
        fn new() -> Self {
            let kept = Kept::new("the source", AGE).until(|failure| *failure == Failure::Final);
            Self { kept, reads: AtomicUsize::new(0) }
        }

        /// A read that takes `time` and then gives `outcome`, or the number of the read.
        async fn read(
            &self,
            time: Duration,
            outcome: Result<(), Failure>,
            deadline: Deadline,
        ) -> Result<usize, Failure> {
            let number = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
            sleep(time.min(deadline.left())).await;
            outcome.map(|()| number)
        }

        async fn get(&self, time: Duration, outcome: Result<(), Failure>) -> Result<usize, Failure> {
            let read = self.kept.get(ten_seconds(), async |deadline| self.read(time, outcome, deadline).await);
            read.await.map_err(|error| *error)
        }

        async fn fresh(&self, max_age: Duration, outcome: Result<(), Failure>) -> Result<usize, Failure> {
            let read = self.kept.fresh(
                |_, time| time.elapsed() < max_age,
                ten_seconds(),
                async |deadline| self.read(Duration::ZERO, outcome, deadline).await,
            );
            read.await.map_err(|error| *error)
        }

        fn reads(&self) -> usize {
            self.reads.load(Ordering::Relaxed)
        }
    }

    fn ten_seconds() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    const NOW: Duration = Duration::ZERO;

    #[tokio::test(start_paused = true)]
    async fn a_value_is_read_once_and_again_when_it_is_too_old() {
        let source = Source::new();
        assert_eq!(source.get(NOW, Ok(())).await, Ok(1));
        advance(AGE.saturating_sub(Duration::from_millis(1))).await;
        assert_eq!(source.get(NOW, Ok(())).await, Ok(1));
        advance(Duration::from_millis(1)).await;
        assert_eq!(source.get(NOW, Ok(())).await, Ok(2));
        // Lambda may freeze the function for long.
        advance(Duration::from_hours(1)).await;
        assert_eq!(source.get(NOW, Ok(())).await, Ok(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_read_that_fails_is_an_error_and_the_next_caller_reads_again() {
        let source = Source::new();
        assert_eq!(source.get(NOW, Err(Failure::MayPass)).await, Err(Failure::MayPass));
        assert_eq!(source.get(NOW, Ok(())).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_refresh_keeps_the_old_value_and_pauses() {
        let source = Source::new();
        source.get(NOW, Ok(())).await.unwrap();
        advance(AGE).await;
        assert_eq!(source.get(NOW, Err(Failure::MayPass)).await, Ok(1));
        advance(REFRESH_PAUSE.saturating_sub(Duration::from_millis(1))).await;
        assert_eq!((source.get(NOW, Ok(())).await, source.reads()), (Ok(1), 2));
        advance(Duration::from_millis(1)).await;
        assert_eq!(source.get(NOW, Ok(())).await, Ok(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_takes_two_seconds_and_a_first_read_all_the_time() {
        let source = Source::new();
        let hangs = Duration::from_mins(1);
        for (expected, seconds) in [(Err(Failure::MayPass), 10), (Ok(2), 0), (Ok(2), 2)] {
            let began = Instant::now();
            let (time, outcome) = if seconds == 0 { (NOW, Ok(())) } else { (hangs, Err(Failure::MayPass)) };
            assert_eq!(source.get(time, outcome).await, expected);
            assert_eq!(began.elapsed().as_secs(), seconds);
            advance(AGE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_who_wait_get_the_answer_of_the_one_read() {
        for outcome in [Err(Failure::MayPass), Ok(())] {
            let source = Source::new();
            let second = Duration::from_secs(1);
            let began = Instant::now();
            let answers = join!(source.get(second, outcome), source.get(second, outcome), source.get(second, outcome));
            let expected = outcome.map(|()| 1);
            assert_eq!(answers, (expected, expected, expected));
            assert_eq!((source.reads(), began.elapsed()), (1, second));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_proves_the_old_value_useless_is_an_error() {
        let source = Source::new();
        source.get(NOW, Ok(())).await.unwrap();
        advance(AGE).await;
        assert_eq!(source.get(NOW, Err(Failure::Final)).await, Err(Failure::Final));
        assert_eq!(source.get(NOW, Ok(())).await, Ok(3), "the next caller reads again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_may_ask_for_a_younger_value() {
        let source = Source::new();
        source.get(NOW, Ok(())).await.unwrap();
        advance(Duration::from_secs(5)).await;
        assert_eq!(source.fresh(Duration::from_secs(6), Ok(())).await, Ok(1));
        assert_eq!(source.fresh(Duration::from_secs(5), Ok(())).await, Ok(2));
        advance(Duration::from_secs(5)).await;
        assert_eq!(source.fresh(NOW, Err(Failure::MayPass)).await, Err(Failure::MayPass));
        assert_eq!(source.fresh(NOW, Ok(())).await, Err(Failure::MayPass), "the failure answers for a while");
        assert_eq!(source.get(NOW, Ok(())).await, Ok(2), "others keep the value");
        advance(REFRESH_PAUSE).await;
        assert_eq!(source.fresh(NOW, Ok(())).await, Ok(4));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_of_a_value_that_is_young_enough_do_not_wait_for_one_who_wants_a_younger_one() {
        let source = Source::new();
        source.get(NOW, Ok(())).await.unwrap();
        let younger = source.kept.fresh(
            |_, _| false,
            ten_seconds(),
            async |_| {
                sleep(Duration::from_secs(1)).await;
                Ok(7)
            },
        );
        let began = Instant::now();
        let other = async {
            sleep(Duration::from_millis(1)).await;
            (source.get(NOW, Ok(())).await, began.elapsed().as_millis())
        };
        let (younger, other) = join!(younger, other);
        assert_eq!((younger.unwrap(), other), (7, (Ok(1), 1)));
    }
}
