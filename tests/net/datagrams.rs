//! Datagram sockets: UDP and Unix, connected and not, one reader or many.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::support::everywhere;

fn udp() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn a_datagram_arrives_whole_and_with_its_sender() {
    everywhere(|host| {
        let ((server, address), (client, own)) = (udp(), udp());
        let task = host.spawn(move || {
            let mut answers = Vec::new();
            let mut buffer = [0; 64];
            for _ in 0..200 {
                // It waits for most of them: the client sends one at a time.
                let (count, from) = server.recv_from(&mut buffer).unwrap();
                assert_eq!(from, own);
                answers.push(count);
                server.send_to(&buffer[..count], from).unwrap();
            }
            answers
        });
        let mut buffer = [0; 64];
        for i in 0..200_usize {
            let message = vec![i as u8; i % 50];
            client.send_to(&message, address).unwrap();
            let (count, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..count], from), (&message[..], address));
        }
        task.value()
    });
}

#[test]
fn connected_datagram_sockets_send_receive_and_peek() {
    everywhere(|host| {
        let ((near, near_address), (far, far_address)) = (udp(), udp());
        near.connect(far_address).unwrap();
        far.connect(near_address).unwrap();
        let task = host.spawn(move || {
            let mut buffer = [0; 16];
            let peeked = far.peek(&mut buffer).unwrap();
            let (again, from) = far.peek_from(&mut buffer).unwrap();
            assert_eq!(from, near_address);
            // A datagram that is longer than the buffer is cut.
            let cut = far.recv(&mut buffer[..3]).unwrap();
            let next = far.recv(&mut buffer).unwrap();
            (peeked, again, cut, next)
        });
        thread::sleep(Duration::from_millis(10));
        near.send(b"seven77").unwrap();
        thread::sleep(Duration::from_millis(5));
        near.send(b"four").unwrap();
        task.value()
    });
}

#[test]
fn many_readers_of_one_datagram_socket_get_each_message_once() {
    const READERS: usize = 16;
    const MESSAGES: u32 = 2000;
    everywhere(|host| {
        let (near, far) = UnixDatagram::pair().unwrap();
        let far = Arc::new(far);
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let far = Arc::clone(&far);
                host.spawn(move || {
                    let mut seen = Vec::new();
                    let mut word = [0; 4];
                    loop {
                        assert_eq!(far.recv(&mut word).unwrap(), 4);
                        match u32::from_be_bytes(word) {
                            u32::MAX => return seen,
                            number => seen.push(number),
                        }
                    }
                })
            })
            .collect();
        // The socket holds only a few: the sender waits for room, too.
        for number in 0..MESSAGES {
            near.send(&number.to_be_bytes()).unwrap();
        }
        for _ in 0..READERS {
            near.send(&u32::MAX.to_be_bytes()).unwrap();
        }
        let mut seen: Vec<_> = readers.into_iter().flat_map(|reader| reader.value()).collect();
        seen.sort_unstable();
        seen
    });
}

#[test]
fn many_senders_wait_for_room_in_one_unix_datagram_socket() {
    everywhere(|host| {
        let (near, far) = UnixDatagram::pair().unwrap();
        let near = Arc::new(near);
        let senders: Vec<_> = (0..10_u8)
            .map(|i| {
                let near = Arc::clone(&near);
                host.spawn(move || {
                    for _ in 0..100 {
                        near.send(&[i; 2000]).unwrap();
                    }
                })
            })
            .collect();
        let mut counts = [0; 10];
        let mut buffer = [0; 4000];
        for round in 0..1000 {
            if round % 100 == 0 {
                // Long enough for the socket to fill up.
                thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(far.recv(&mut buffer).unwrap(), 2000);
            assert!(buffer[..2000].iter().all(|&byte| byte == buffer[0]));
            counts[usize::from(buffer[0])] += 1;
        }
        senders.into_iter().for_each(|sender| sender.value());
        counts
    });
}
