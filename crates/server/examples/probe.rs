use std::sync::Arc; use std::time::{Duration, Instant};
use rayreel_server::*; use rayreel_server::config::*; use tokio::io::*; use tokio::net::*;
struct Nobody;
#[async_trait::async_trait]
impl fleet::Provider for Nobody {
 async fn launch(&self, _: store::Launch, _: &str) -> std::result::Result<store::Launch, String> { Err("no".into()) }
 async fn probe(&self, _: &store::Launch) -> std::result::Result<(), fleet::Death> { Ok(()) }
 async fn stop(&self, _: &store::Launch, _: bool) {} async fn forget(&self, _: &store::Launch) {}
}
#[tokio::main]
async fn main() {
 let a: Vec<String> = std::env::args().collect();
 match a[1].as_str() {
 "serve" => {
  let dir = std::path::PathBuf::from(&a[2]); std::fs::create_dir_all(&dir).unwrap();
  let settings = Settings::load(&Sources{data: Some(dir.clone()), directory: dir.clone(), ..Default::default()}).unwrap();
  let clock: Arc<dyn clock::Clock> = Arc::new(clock::SystemClock::new()); let random = Arc::new(clock::Random::from_system()); let feed = Arc::new(feed::Feed::default());
  let store = store::sqlite::SqliteStore::open(dir.join("t.db"), store::sqlite::Options{clock: clock.clone(), random: random.clone(), feed: feed.clone(), rules: settings.rules(), locality: settings.locality(), max_queued: 5_000_000, garbage_after_ms: 1000, worker_silence_ms: 100_000}).unwrap();
  let components = Components{clock, random, store: Arc::new(store), feed, artifacts: artifacts::Artifacts::open(dir.join("artifacts")).unwrap(), provider: Arc::new(Nobody), worker_token: "secret".into()};
  let app = Arc::new(App{estimates: estimate::Estimates::new(&settings), targets: Default::default(), metrics: Default::default(), stopping: Default::default(), settings, components});
  let l = TcpListener::bind("127.0.0.1:8099").await.unwrap();
  println!("up {}", std::process::id());
  api::serve(l, app, Default::default()).await.unwrap();
 }
 "load" => {
  let n: usize = a[3].parse().unwrap(); let secs: u64 = a[4].parse().unwrap();
  let body = r#"{"prompt":"a red fox running through snow, cinematic, 35 mm","frames":49,"seed":7}"#;
  let submit = format!("POST /v1/video/generations HTTP/1.1\r\nHost: 127.0.0.1:8099\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
  let mut s = TcpStream::connect("127.0.0.1:8099").await.unwrap();
  s.write_all(submit.as_bytes()).await.unwrap(); let mut b = vec![0; 8192]; let k = s.read(&mut b).await.unwrap();
  let text = String::from_utf8_lossy(&b[..k]).into_owned(); let i = text.find("task_").unwrap(); let id = text[i..i+37].to_owned();
  let req = match a[2].as_str() { "submit" => submit, "health" => "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8099\r\n\r\n".into(), _ => format!("GET /v1/video/generations/{id} HTTP/1.1\r\nHost: 127.0.0.1:8099\r\n\r\n") };
  let req: Arc<[u8]> = req.into_bytes().into();
  let end = Instant::now() + Duration::from_secs(secs);
  let mut set = tokio::task::JoinSet::new();
  for _ in 0..n { let req = req.clone(); set.spawn(async move {
   let mut s = TcpStream::connect("127.0.0.1:8099").await.unwrap(); s.set_nodelay(true).unwrap();
   let mut b = vec![0u8; 16384]; let mut count = 0u64; let mut lat = Vec::new();
   while Instant::now() < end { let t = Instant::now(); s.write_all(&req).await.unwrap(); let k = s.read(&mut b).await.unwrap(); assert!(b.starts_with(b"HTTP/1.1 20"), "{}", String::from_utf8_lossy(&b[..k])); count += 1; lat.push(t.elapsed().as_micros() as u32); }
   (count, lat) }); }
  let mut total = 0; let mut lat = Vec::new(); while let Some(r) = set.join_next().await { let (c, l) = r.unwrap(); total += c; lat.extend(l); }
  lat.sort(); println!("{} {}/s p50 {} us p99 {} us", a[2], total / secs, lat[lat.len()/2], lat[lat.len()*99/100]);
 }
 "sse" => {
  let n: usize = a[2].parse().unwrap(); let same = a.get(3).is_some();
  let mut conns = Vec::new(); let mut b = vec![0; 8192]; let mut id = String::new();
  for i in 0..n {
   let mut s = TcpStream::connect("127.0.0.1:8099").await.unwrap();
   if !same || i == 0 { let body = r#"{"prompt":"a red fox"}"#;
   s.write_all(format!("POST /v1/video/generations HTTP/1.1\r\nHost: 127.0.0.1:8099\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
   let k = s.read(&mut b).await.unwrap(); let text = String::from_utf8_lossy(&b[..k]).into_owned(); let i = text.find("task_").unwrap(); id = text[i..i+37].to_owned(); }
   s.write_all(format!("GET /v1/video/generations/{id}/events HTTP/1.1\r\nHost: 127.0.0.1:8099\r\nAccept: text/event-stream\r\nUser-Agent: x\r\n\r\n").as_bytes()).await.unwrap();
   let k = s.read(&mut b).await.unwrap(); assert!(b[..k].starts_with(b"HTTP/1.1 200"));
   conns.push(s);
  }
  println!("open {n}"); tokio::time::sleep(Duration::from_secs(a.get(4).and_then(|x| x.parse().ok()).unwrap_or(20))).await;
 }
 _ => panic!() }
}
