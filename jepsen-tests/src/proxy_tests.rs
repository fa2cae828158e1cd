//! Held bytes come late, never lost; one way can be held alone; a dead end breaks its connections.

use tokio::net::TcpSocket;

use super::*;

const WAY: Way = (End::Node(1), End::Node(2));

struct Pair {
    links: Links,
    client: TcpStream,
    server: TcpStream,
}

/// Node 1 connected to node 2.
async fn pair() -> Pair {
    let links = Links::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let proxy = links.attach(WAY.1, &target).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((WAY.0.outbound().unwrap(), 0).into()).unwrap();
    let client = socket.connect(proxy.parse().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    Pair { links, client, server }
}

fn hold(way: Way) -> Rules {
    vec![(way, Rule { hold: true, ..Rule::default() })]
}

async fn receive(stream: &mut TcpStream) -> std::io::Result<u8> {
    stream.read_u8().await
}

/// Whether nothing comes for a while.
async fn silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(Duration::from_millis(60), stream.read_u8()).await.is_err()
}

#[tokio::test]
async fn what_is_held_one_way_comes_when_the_link_heals_and_the_other_way_passes() {
    let Pair { links, mut client, mut server } = pair().await;
    links.set(0, hold(WAY));
    client.write_u8(1).await.unwrap();
    assert!(silent(&mut server).await);
    server.write_u8(2).await.unwrap();
    assert_eq!(receive(&mut client).await.unwrap(), 2);
    // Another fault's end is not this one's.
    links.set(1, hold(WAY));
    links.clear(1);
    assert!(silent(&mut server).await);
    links.clear(0);
    assert_eq!(receive(&mut server).await.unwrap(), 1);
}

#[tokio::test]
async fn a_death_is_told_only_over_a_link_that_passes() {
    let Pair { links, mut client, server } = pair().await;
    links.set(0, hold((WAY.1, WAY.0)));
    server.set_zero_linger().unwrap();
    drop(server);
    assert!(silent(&mut client).await);
    links.heal();
    assert!(receive(&mut client).await.is_err());
}

#[tokio::test]
async fn a_lossy_link_breaks_and_a_slow_one_delivers_late() {
    let Pair { links, mut client, mut server } = pair().await;
    let delay = Duration::from_millis(80);
    links.set(0, vec![(WAY, Rule { delay, ..Rule::default() })]);
    let sent = Instant::now();
    client.write_u8(1).await.unwrap();
    assert_eq!(receive(&mut server).await.unwrap(), 1);
    assert!(sent.elapsed() >= delay);
    links.set(0, vec![(WAY, Rule { reset: 1.0, ..Rule::default() })]);
    client.write_u8(2).await.unwrap();
    assert!(receive(&mut server).await.is_err());
}

#[test]
fn an_end_is_known_by_its_address() {
    for end in [End::Node(1), End::Node(250), End::Router(2)] {
        assert_eq!(End::of(end.outbound().unwrap().into()), end);
    }
    assert_eq!(End::of(Ipv4Addr::LOCALHOST.into()), End::Outside);
}
