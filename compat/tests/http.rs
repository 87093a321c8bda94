//! HTTP: ureq, reqwest and libcurl fetch on fibers, tiny_http answers on fibers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use sleave_compat::together;

const CLIENTS: usize = 200;
/// What a server takes for each page.
const NAP: Duration = Duration::from_millis(100);
/// One after the other they would take 20 s.
const LIMIT: Duration = Duration::from_secs(8);

/// A server in plain std with a fiber for each connection; each page takes a nap.
struct Site {
    address: SocketAddr,
    listener: TcpListener,
    runtime: sleave::Runtime,
}

impl Site {
    fn open() -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = sleave::Runtime::builder().workers(1).build().unwrap();
        let accepting = listener.try_clone().unwrap();
        drop(runtime.spawn(move || {
            // Until `close` connects and says nothing.
            while let Ok((stream, _)) = accepting.accept() {
                if stream.peek(&mut [0]).is_ok_and(|count| count == 0) {
                    return;
                }
                drop(sleave::spawn(move || serve(&stream)));
            }
        }));
        Site { address, listener, runtime }
    }

    fn close(self) {
        drop(TcpStream::connect(self.address).unwrap());
        drop(self.listener);
        self.runtime.stop();
    }
}

/// Answers requests until the client hangs up.
fn serve(stream: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        let path = request.split(' ').nth(1).unwrap_or_default();
        std::thread::sleep(NAP);
        let page = format!("the page at {path}");
        let length = page.len();
        (&mut &*stream).write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{page}").as_bytes(),
        )?;
    }
    Ok(())
}

fn expected(number: usize) -> String {
    format!("the page at /{number}")
}

#[test]
fn ureq_fetches_pages() {
    let site = Site::open();
    let address = site.address;
    let overlap = together(CLIENTS, move |number| {
        let agent = ureq::Agent::new_with_defaults();
        let mut page = agent.get(format!("http://{address}/{number}")).call().unwrap();
        page.body_mut().read_to_string().unwrap()
    });
    overlap.assert(LIMIT);
    assert!(overlap.results.iter().enumerate().all(|(number, page)| *page == expected(number)));
    site.close();
}

/// The blocking client has one thread with an event loop; callers wait for it at a channel.
#[test]
fn reqwest_fetches_pages() {
    let site = Site::open();
    let address = site.address;
    let client = reqwest::blocking::Client::new();
    let overlap = together(CLIENTS, {
        let client = client.clone();
        move |number| {
            client.get(format!("http://{address}/{number}")).send().unwrap().text().unwrap()
        }
    });
    overlap.assert(LIMIT);
    assert!(overlap.results.iter().enumerate().all(|(number, page)| *page == expected(number)));
    // It keeps connections for later.
    drop(client);
    site.close();
}

/// A C library: its `poll` parks.
#[test]
fn libcurl_fetches_pages() {
    let site = Site::open();
    let address = site.address;
    curl::init();
    let overlap = together(CLIENTS, move |number| {
        let mut page = Vec::new();
        let mut easy = curl::easy::Easy::new();
        easy.url(&format!("http://{address}/{number}")).unwrap();
        {
            let mut transfer = easy.transfer();
            transfer
                .write_function(|piece| {
                    page.extend_from_slice(piece);
                    Ok(piece.len())
                })
                .unwrap();
            transfer.perform().unwrap();
        }
        String::from_utf8(page).unwrap()
    });
    overlap.assert(LIMIT);
    assert!(overlap.results.iter().enumerate().all(|(number, page)| *page == expected(number)));
    site.close();
}

/// HTTPS: ureq with rustls on one side, rustls over a `TcpStream` on the other.
#[test]
fn ureq_with_rustls_fetches_over_tls() {
    let certified = sleave_compat::certificate();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let runtime = sleave::Runtime::builder().workers(1).stack_size(1 << 20).build().unwrap();
    let server = runtime.spawn(move || {
        for _ in 0..CLIENTS {
            let (mut stream, _) = listener.accept().unwrap();
            let config = Arc::clone(&config);
            drop(sleave::spawn(move || {
                let mut session = rustls::ServerConnection::new(config).unwrap();
                let mut tls = rustls::Stream::new(&mut session, &mut stream);
                let mut request = [0; 1024];
                let count = tls.read(&mut request).unwrap();
                let line = String::from_utf8_lossy(&request[..count]);
                let path = line.split(' ').nth(1).unwrap().to_owned();
                std::thread::sleep(NAP);
                let page = format!("the page at {path}");
                write!(
                    tls,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                    page.len()
                )
                .unwrap();
                tls.flush().unwrap();
            }));
        }
    });
    let root = ureq::tls::Certificate::from_der(certified.cert.der()).to_owned();
    let overlap = together(CLIENTS, move |number| {
        let roots = ureq::tls::RootCerts::new_with_certs(std::slice::from_ref(&root));
        let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
        let agent = ureq::Agent::config_builder().tls_config(tls).build().new_agent();
        // The name is looked up: getaddrinfo.
        let mut page = agent.get(format!("https://localhost:{port}/{number}")).call().unwrap();
        page.body_mut().read_to_string().unwrap()
    });
    overlap.assert(2 * LIMIT);
    assert!(overlap.results.iter().enumerate().all(|(number, page)| *page == expected(number)));
    server.join().unwrap();
    runtime.stop();
}

/// tiny_http has threads of its own, one for each connection; those that answer are fibers. Clients send all their
/// requests at once, and each is answered by another fiber.
#[test]
fn tiny_http_is_answered_for_by_fibers() {
    const CONNECTIONS: usize = 8;
    const EACH: usize = CLIENTS / CONNECTIONS;
    let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").unwrap());
    let address = server.server_addr().to_ip().unwrap();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|client| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                for number in 0..EACH {
                    write!(
                        stream,
                        "GET /{} HTTP/1.1\r\nHost: here\r\n\r\n",
                        client * EACH + number
                    )
                    .unwrap();
                }
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut pages = String::new();
                stream.read_to_string(&mut pages).unwrap();
                let found: Vec<usize> = pages
                    .match_indices("the page at /")
                    .map(|(at, before)| {
                        let digits = &pages[at + before.len()..];
                        let end =
                            digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                        digits[..end].parse().unwrap()
                    })
                    .collect();
                assert_eq!(found, (client * EACH..(client + 1) * EACH).collect::<Vec<_>>());
            })
        })
        .collect();
    let overlap = together(CLIENTS, move |_| {
        let request = server.recv().unwrap();
        std::thread::sleep(NAP);
        let page = format!("the page at {}.", request.url());
        request.respond(tiny_http::Response::from_string(page)).unwrap();
    });
    clients.into_iter().for_each(|client| client.join().unwrap());
    overlap.assert(LIMIT);
}
