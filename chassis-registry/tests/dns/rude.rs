//! DNS servers that break the rules: forging, garbled, refusing.
use std::{
    net::UdpSocket,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use chassis_core::{registry::Registry, units::PositiveSpan};
use chassis_registry::{DnsConfig, DnsRegistry};
use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, timeout};

use crate::records::{PATIENCE, ids_of, next, quick, until};

trials! {
    forged_answers_are_passed_over
    garbled_answers_take_nothing_away
    answers_that_make_no_sense_take_nothing_away
}

/// Answers over UDP as `answer` says, on a thread of its own: for a query, the bytes to send.
struct Server {
    address: String,
    answers: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Answer = dyn FnMut(&Message) -> Vec<Vec<u8>> + Send;

// === impl Server ===

impl Server {
    fn start(mut answer: Box<Answer>) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let (answers, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, over) = (answers.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while !over.load(Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let query = Message::from_vec(&buffer[..length]).unwrap();
                for bytes in answer(&query) {
                    counted.fetch_add(1, Relaxed);
                    let _ = socket.send_to(&bytes, from);
                }
            }
        });
        Server { address, answers, is_over, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// The answer to a question for A records: these addresses, of no TTL.
fn good(query: &Message, last: &[u8]) -> Message {
    let question = query.queries[0].clone();
    let mut answer = Message::new(query.id, MessageType::Response, OpCode::Query);
    if question.query_type() == RecordType::A {
        answer.add_answers(last.iter().map(|last| {
            Record::from_rdata(question.name().clone(), 0, RData::A(rdata::A::new(127, 0, 0, *last)))
        }));
    }
    answer.add_query(question);
    answer
}

async fn forged_answers_are_passed_over() {
    let server = Server::start(Box::new(|query| {
        let mut other_id = good(query, &[66]);
        other_id.metadata.id = query.id.wrapping_add(1);
        let mut other_name = good(query, &[66]);
        other_name.queries[0].set_name(Name::from_ascii("other.test.").unwrap());
        let mut foreign = good(query, &[5]);
        foreign.add_answer(Record::from_rdata(
            Name::from_ascii("other.test.").unwrap(),
            0,
            RData::A(rdata::A::new(127, 0, 0, 66)),
        ));
        [other_id, other_name, foreign].iter().map(|answer| answer.to_vec().unwrap()).collect()
    }));
    let registry = DnsRegistry::new(quick(&server.address)).unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    assert_eq!(ids_of(&next(&mut watcher).await), ["127.0.0.5"]);
}

/// Bytes of good answers are changed at random, and noise is sent: what was known stays, and what comes afterwards is
/// seen.
async fn garbled_answers_take_nothing_away() {
    let (is_good, mut random) = (Arc::new(AtomicBool::new(true)), StdRng::seed_from_u64(0x5eed));
    let last = Arc::new(Mutex::new(1));
    let (good_now, last_now) = (is_good.clone(), last.clone());
    let server = Server::start(Box::new(move |query| {
        let answer = good(query, &[*last_now.lock().unwrap()]).to_vec().unwrap();
        if good_now.load(Relaxed) {
            return vec![answer];
        }
        let mut noise = vec![0; random.random_range(0..1_500)];
        random.fill_bytes(&mut noise);
        noise.splice(0..2.min(noise.len()), query.id.to_be_bytes());
        let mut all = vec![noise, answer[..random.random_range(0..answer.len())].to_vec()];
        for _ in 0..20 {
            let mut garbled = answer.clone();
            // The header's counts, the names and the lengths; the id stays, or it would be passed over.
            let at = random.random_range(2..answer.len());
            garbled[at] = random.random();
            all.push(garbled);
        }
        all
    }));
    let short = DnsConfig { timeout: PositiveSpan::from_millis(50), ..quick(&server.address) };
    let registry = DnsRegistry::new(short).unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["127.0.0.1"]).await;
    is_good.store(false, Relaxed);
    let before = server.answers.load(Relaxed);
    let begun = Instant::now();
    while server.answers.load(Relaxed) < before + 400 {
        assert!(begun.elapsed() < PATIENCE, "it is asked again");
        // A changed address or port of an answer cannot be distinguished from a true one.
        let _ = timeout(Duration::from_millis(10), watcher.next()).await;
    }
    *last.lock().unwrap() = 2;
    is_good.store(true, Relaxed);
    let back = Instant::now();
    until(&mut watcher, &["127.0.0.2"]).await;
    assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
}

async fn answers_that_make_no_sense_take_nothing_away() {
    let code = Arc::new(Mutex::new(None));
    let now = code.clone();
    let server = Server::start(Box::new(move |query| {
        let mut answer = good(query, &[1]);
        match *now.lock().unwrap() {
            None => {}
            // Truncated, and nothing answers over TCP.
            Some(ResponseCode::NoError) => answer.metadata.truncation = true,
            Some(code) => {
                answer.metadata.response_code = code;
                answer.answers.clear();
            }
        }
        vec![answer.to_vec().unwrap()]
    }));
    let registry = DnsRegistry::new(quick(&server.address)).unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["127.0.0.1"]).await;
    for refusal in
        [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::FormErr, ResponseCode::NoError]
    {
        *code.lock().unwrap() = Some(refusal);
        let error = timeout(PATIENCE, watcher.next()).await.unwrap();
        assert!(error.is_err(), "{refusal}: {error:?}");
        *code.lock().unwrap() = None;
        // Nothing was taken away, so nothing is news until there is a change.
        let reached = server.answers.load(Relaxed) + 20;
        while server.answers.load(Relaxed) < reached {
            let found = timeout(Duration::from_millis(10), watcher.next()).await;
            assert!(!matches!(&found, Ok(Ok(_))), "{refusal}: {found:?}");
        }
    }
}
