//! The words of the pages in each language, and which language a person reads: what the client asked for
//! (`ui_locales`, OpenID Connect Core §3.1.2.1), else what the browser says, else English.

use serde::{Deserialize, Serialize};

/// A language of the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Language {
    #[default]
    En,
    De,
    Ja,
}

/// Tags looked at in what a client or browser wants.
const MOST_TAGS: usize = 32;

impl Language {
    /// All of them, for the discovery document.
    pub(super) const ALL: [Language; 3] = [Language::En, Language::De, Language::Ja];

    /// Its tag (RFC 5646), for `lang` and `ui_locales_supported`.
    pub(super) fn tag(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::De => "de",
            Language::Ja => "ja",
        }
    }

    /// The language of a tag such as `de-AT`.
    fn of(tag: &str) -> Option<Language> {
        let primary = tag.trim().split(['-', '_']).next().unwrap_or_default();
        Language::ALL.into_iter().find(|language| language.tag().eq_ignore_ascii_case(primary))
    }

    /// The first language that is spoken here of `ui_locales` (tags in order), else the best of
    /// `Accept-Language` (tags with weights, RFC 9110 §12.5.4).
    pub(super) fn choose(ui_locales: Option<&str>, accepted: Option<&str>) -> Language {
        let asked = ui_locales.unwrap_or_default().split_whitespace().take(MOST_TAGS).find_map(Language::of);
        asked.or_else(|| Language::accepted(accepted.unwrap_or_default())).unwrap_or_default()
    }

    fn accepted(header: &str) -> Option<Language> {
        let mut best: Option<(f32, Language)> = None;
        for entry in header.split(',').take(MOST_TAGS) {
            let (tag, weight) = entry.split_once(';').unwrap_or((entry, ""));
            let weight = weight.trim().strip_prefix("q=").map_or(Some(1.0), |text| text.parse::<f32>().ok());
            let weight = weight.filter(|weight| *weight > 0.0 && *weight <= 1.0);
            if let (Some(weight), Some(language)) = (weight, Language::of(tag))
                && best.is_none_or(|(known, _)| weight > known)
            {
                best = Some((weight, language));
            }
        }
        best.map(|(_, language)| language)
    }

    /// Its words.
    pub(super) fn words(self) -> &'static Words {
        match self {
            Language::En => &EN,
            Language::De => &DE,
            Language::Ja => &JA,
        }
    }
}

/// A sentence around a name: what stands before and after it.
pub(super) type Around = (&'static str, &'static str);

/// Everything that pages say.
pub(super) struct Words {
    pub(super) sign_in: &'static str,
    pub(super) sign_in_for: Around,
    pub(super) name: &'static str,
    pub(super) password: &'static str,
    pub(super) wrong: &'static str,
    pub(super) too_many: &'static str,
    pub(super) consent: &'static str,
    pub(super) signed_in_as: Around,
    pub(super) asks: Around,
    pub(super) know_who: &'static str,
    pub(super) nothing_more: &'static str,
    pub(super) unverified: &'static str,
    pub(super) returns_to: Around,
    pub(super) allow: &'static str,
    pub(super) deny: &'static str,
    pub(super) problem: &'static str,
    pub(super) back_to: Around,
    pub(super) unknown_client: &'static str,
    pub(super) unknown_address: &'static str,
    pub(super) came_twice: &'static str,
    pub(super) refused: &'static str,
    pub(super) expired: &'static str,
    pub(super) incomplete: &'static str,
    pub(super) not_taken: &'static str,
    pub(super) busy: &'static str,
    pub(super) other_site: &'static str,
}

const EN: Words = Words {
    sign_in: "Sign in",
    sign_in_for: ("to go on to ", ""),
    name: "Name",
    password: "Password",
    wrong: "Name or password is wrong.",
    too_many: "Too many attempts. Wait a minute.",
    consent: "Allow access?",
    signed_in_as: ("You are signed in as ", "."),
    asks: ("", " asks to:"),
    know_who: "know who you are",
    nothing_more: "know that you allow it",
    unverified: "This application registered itself. Nobody here has checked it.",
    returns_to: ("You will be sent back to ", "."),
    allow: "Allow",
    deny: "Deny",
    problem: "This does not work",
    back_to: ("Back to ", ""),
    unknown_client: "The application that sent you here is not known.",
    unknown_address: "The application wants you sent back to an address that is not registered for it.",
    came_twice: "A parameter came twice.",
    refused: "The application's request was refused.",
    expired: "This page has expired. Go back to the application and start again.",
    incomplete: "This form is not complete.",
    not_taken: "The form was not taken.",
    busy: "Too many people are signing in. Try again later.",
    other_site: "This form was sent by another site. Go back to the application and start again.",
};

const DE: Words = Words {
    sign_in: "Anmelden",
    sign_in_for: ("um weiterzugehen zu ", ""),
    name: "Benutzername",
    password: "Passwort",
    wrong: "Benutzername oder Passwort ist falsch.",
    too_many: "Zu viele Versuche. Bitte eine Minute warten.",
    consent: "Zugriff erlauben?",
    signed_in_as: ("Sie sind angemeldet als ", "."),
    asks: ("", " möchte Folgendes dürfen:"),
    know_who: "erfahren, wer Sie sind",
    nothing_more: "erfahren, dass Sie es erlauben",
    unverified: "Diese Anwendung hat sich selbst registriert. Niemand hier hat sie geprüft.",
    returns_to: ("Sie werden zurückgeleitet zu ", "."),
    allow: "Erlauben",
    deny: "Ablehnen",
    problem: "Das geht so nicht",
    back_to: ("Zurück zu ", ""),
    unknown_client: "Die Anwendung, von der Sie kommen, ist hier nicht bekannt.",
    unknown_address: "Die Anwendung will Sie an eine Adresse zurückleiten, die für sie nicht registriert ist.",
    came_twice: "Ein Parameter kam doppelt.",
    refused: "Die Anfrage der Anwendung wurde abgelehnt.",
    expired: "Diese Seite ist abgelaufen. Gehen Sie zurück zur Anwendung und beginnen Sie von vorn.",
    incomplete: "Dieses Formular ist unvollständig.",
    not_taken: "Das Formular wurde nicht angenommen.",
    busy: "Zu viele Anmeldungen zugleich. Versuchen Sie es später noch einmal.",
    other_site: "Dieses Formular kam von einer anderen Seite. Gehen Sie zurück zur Anwendung und beginnen Sie von vorn.",
};

const JA: Words = Words {
    sign_in: "サインイン",
    sign_in_for: ("", " に進むにはサインインしてください"),
    name: "ユーザー名",
    password: "パスワード",
    wrong: "ユーザー名またはパスワードが正しくありません。",
    too_many: "試行回数が多すぎます。1分ほどお待ちください。",
    consent: "アクセスを許可しますか？",
    signed_in_as: ("", " としてサインインしています。"),
    asks: ("", " が次の許可を求めています:"),
    know_who: "あなたが誰であるかを確認する",
    nothing_more: "あなたの許可を確認する",
    unverified: "このアプリケーションは自己登録されたもので、確認されていません。",
    returns_to: ("許可後は ", " に戻ります。"),
    allow: "許可",
    deny: "拒否",
    problem: "処理できません",
    back_to: ("", " に戻る"),
    unknown_client: "呼び出し元のアプリケーションは登録されていません。",
    unknown_address: "アプリケーションが指定した戻り先のアドレスは登録されていません。",
    came_twice: "同じパラメーターが2回指定されています。",
    refused: "アプリケーションの要求は拒否されました。",
    expired: "このページの有効期限が切れました。アプリケーションに戻ってやり直してください。",
    incomplete: "フォームの入力が不足しています。",
    not_taken: "フォームを受け付けられませんでした。",
    busy: "サインインが集中しています。しばらくしてからやり直してください。",
    other_site: "このフォームは別のサイトから送信されました。アプリケーションに戻ってやり直してください。",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses_the_language_then_the_browser_then_it_is_english() {
        let choose = |ui: &str, accepted: &str| Language::choose(Some(ui), Some(accepted)).tag();
        assert_eq!(choose("ja", "de"), "ja");
        assert_eq!(choose("fr-CA de-AT ja", "en"), "de", "the first that is spoken here");
        assert_eq!(choose("fr", "fr, de-CH;q=0.8, en;q=0.9"), "en");
        assert_eq!(choose("", "fr,DE;q=0.5,en;q=0"), "de");
        assert_eq!(choose("", "fr;q=0.9,*;q=0.1"), "en");
        assert_eq!(choose("", "ja;q=nonsense, de;q=7"), "en");
        assert_eq!(Language::choose(None, None).tag(), "en");
    }
}
