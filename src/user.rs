//! Users and groups by name.

use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    /// Names that were asked for: a live view shows the same few again and again, and each may take a file, or a server.
    static NAMES: RefCell<HashMap<u32, String>> = RefCell::default();
}

/// The name of a user, or the number where there is none. It is looked up once.
pub fn name(uid: u32) -> String {
    let look_up = || match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    };
    NAMES.with_borrow_mut(|names| names.entry(uid).or_insert_with(look_up).clone())
}

/// A job's user for a person: `root (alice)` where alice became root, by sudo say.
pub fn label(uid: u32, login_uid: Option<u32>) -> String {
    match login_uid {
        Some(login_uid) if uid == 0 && login_uid != 0 => format!("{} ({})", name(uid), name(login_uid)),
        _ => name(uid),
    }
}

/// The number of a user, by name or number.
pub fn user_id(name: &str) -> Option<u32> {
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Some(user.uid.as_raw()),
        _ => name.parse().ok(),
    }
}

/// The name of a group, or the number where there is none.
pub fn group_name(gid: u32) -> String {
    match nix::unistd::Group::from_gid(gid.into()) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

/// The number of a group.
pub fn group_id(name: &str) -> Option<u32> {
    let group = nix::unistd::Group::from_name(name).ok()??;
    Some(group.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn root_is_shown_with_who_became_root() {
        assert_eq!(label(0, Some(4_000_000)), "root (4000000)");
        assert_eq!(label(0, Some(0)), "root");
        assert_eq!(label(0, None), "root");
        // A plain user's number says all there is, also after su.
        assert_eq!(label(4_000_000, Some(4_000_001)), "4000000");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Any number can own a ticket, and any word can be typed for a group.
        #[test]
        fn any_user_has_a_label_and_any_group_s_name_may_be_asked_for(uid: u32, login_uid: Option<u32>, group: String) {
            prop_assert!(!name(uid).is_empty());
            prop_assert!(label(uid, login_uid).starts_with(&name(uid)));
            let _ = group_id(&group);
            prop_assert_eq!(user_id(&uid.to_string()), Some(uid));
        }
    }
}
