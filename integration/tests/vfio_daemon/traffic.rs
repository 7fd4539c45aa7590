//! Two guests exchange data.

use crate::scene::{LIMIT, Scene, passed};

pub(crate) fn traffic_flows(scene: &Scene) {
    let daemon = scene.daemon(LIMIT);
    let devinfo = scene.vm.check("pverbs devinfo --socket /run/a").unwrap();
    assert!(devinfo.contains("PORT_ACTIVE (4)"), "{devinfo}");
    passed("active", "the daemon in the VM serves a device whose port is ACTIVE");

    for options in ["-c -n 200", "-c -e -s 100000 -n 50", "-c -g 0 -m 4096 -s 1000000 -n 5"] {
        let (requests, payload) = (scene.count("send_wqes"), scene.count("payload_bytes"));
        for process in scene.ping(options) {
            let output = process.wait(LIMIT).unwrap();
            assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
        }
        let number = |option: &str, default| {
            let mut words = options.split(' ').skip_while(|word| *word != option).skip(1);
            words.next().map_or(default, |word| word.parse::<u64>().unwrap())
        };
        let messages = 2 * number("-n", 0);
        assert_eq!(scene.count("send_wqes") - requests, messages);
        assert_eq!(scene.count("payload_bytes") - payload, messages * number("-s", 4096));
        passed("ping", &format!("{messages} messages between two processes, data checked ({options})"));
    }

    let interrupts = scene.interrupts();
    assert!(interrupts.iter().sum::<u64>() > 0, "{interrupts:?}");
    passed("msi-x", &format!("interrupts that came, by vector: {interrupts:?}"));
    scene.fails("doctor", &["FAILED  files     in use: paraverbsd (process ", "has /dev/vfio/"]);
    scene.fails("unbind", &["is in use, end that first: paraverbsd (process "]);
    passed("in use", "while the daemon runs nobody can move the card");
    daemon.stop();
    assert!(scene.is_untouched());
    passed("exit", "after the daemon's end nothing is left in the card");
}
