//! What may travel to another process: which signatures, parameters and results may, and what to write instead of
//! those that may not.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{
    GenericArgument, GenericParam, Pat, Path, PathArguments, ReturnType, Signature, Type, TypeParamBound,
    TypeReference,
};

/// serde encodes tuples of up to this many fields.
const WIDEST_TUPLE: usize = 16;

/// Everything that is wrong with an item, so that all of it is told at once.
#[derive(Default)]
pub(crate) struct Refusals(Option<syn::Error>);

impl Refusals {
    pub(crate) fn at(&mut self, place: impl ToTokens, why: impl std::fmt::Display) {
        self.add(syn::Error::new_spanned(place, why));
    }

    pub(crate) fn add(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// The value, or one refusal more.
    pub(crate) fn unless<T>(&mut self, read: syn::Result<T>) -> Option<T> {
        read.map_err(|error| self.add(error)).ok()
    }

    pub(crate) fn none_or<T>(self, value: T) -> syn::Result<T> {
        self.0.map_or(Ok(value), Err)
    }

    /// A signature that means the same in every process: neither generic nor special. `what` is "a task".
    pub(crate) fn of_signature(&mut self, signature: &Signature, what: &str) {
        for parameter in &signature.generics.params {
            match parameter {
                GenericParam::Lifetime(_) => self.at(
                    parameter,
                    format!(
                        "{what} cannot borrow from its caller, which is another process: write owned types"
                    ),
                ),
                GenericParam::Type(_) | GenericParam::Const(_) => {
                    let name = match parameter {
                        GenericParam::Type(of) => &of.ident,
                        GenericParam::Const(of) => &of.ident,
                        GenericParam::Lifetime(of) => &of.lifetime.ident,
                    };
                    self.at(
                        parameter,
                        format!(
                            "{what} cannot be generic, its name is all that says what runs: \
                             write what `{name}` stands for"
                        ),
                    );
                }
            }
        }
        if signature.generics.params.is_empty() && signature.generics.where_clause.is_some() {
            self.at(
                &signature.generics.where_clause,
                format!("{what} cannot have a `where` clause: leave it out"),
            );
        }
        for (word, tokens) in [
            ("const", signature.constness.to_token_stream()),
            ("unsafe", signature.unsafety.to_token_stream()),
            ("extern", signature.abi.to_token_stream()),
        ] {
            if !tokens.is_empty() {
                self.at(tokens, format!("{what} cannot be `{word}`: write a plain `fn` or `async fn`"));
            }
        }
        if let Some(dots) = &signature.variadic {
            self.at(dots, format!("{what} cannot have a variable number of parameters: write `Vec<T>`"));
        }
    }

    pub(crate) fn of_parameter(&mut self, ty: &Type) {
        self.of_type(ty, "a parameter");
    }

    pub(crate) fn of_result(&mut self, ty: &Type) {
        if let Type::Never(never) = peeled(ty) {
            self.at(
                never,
                "a result travels back to the caller, and `!` is none: write `()` or leave it out",
            );
        } else {
            self.of_type(ty, "a result");
        }
    }

    /// Parameters that make one tuple.
    pub(crate) fn of_many(&mut self, signature: &Signature, travelling: usize) {
        if travelling > WIDEST_TUPLE {
            self.at(
                &signature.inputs,
                format!(
                    "at most {WIDEST_TUPLE} parameters can travel as they are: write a struct that holds them"
                ),
            );
        }
    }

    /// State, which stays where it was built: a type of its own, that borrows nothing.
    pub(crate) fn of_state(&mut self, ty: &Type) {
        match peeled(ty) {
            Type::ImplTrait(_) => self.at(
                ty,
                format!(
                    "tasks borrow state by its type: write the type itself instead of `{}`, or `Box<dyn ..>`",
                    written(ty)
                ),
            ),
            Type::Never(_) => self.at(ty, "state is what stays: write the type that the function returns"),
            Type::Tuple(tuple) if tuple.elems.is_empty() => {
                self.at(ty, "`()` is no state to borrow: write a type of your own");
            }
            _ => {
                if let Some(lifetime) = lifetime_in(ty.to_token_stream()) {
                    self.at(
                        ty,
                        format!("state stays when its function has returned and cannot borrow: write an owned type \
                                 instead of one with `{lifetime}`"),
                    );
                }
            }
        }
    }

    fn of_type(&mut self, ty: &Type, what: &str) {
        match ty {
            Type::Reference(reference) => self.at(
                reference,
                format!(
                    "{what} travels to another process and cannot be borrowed: write `{}` instead of `{}`",
                    owned_instead_of(reference),
                    written(reference)
                ),
            ),
            Type::ImplTrait(_) if is_stream(ty) => self.at(
                ty,
                format!(
                    "a stream is all of an answer, or what is in its `Result`: write `-> {0}` or `-> Result<{0}, E>` \
                     on a method of an actor",
                    written(ty)
                ),
            ),
            Type::ImplTrait(_) => self.at(
                ty,
                format!(
                    "the far side must know the type of {what}: write the type itself instead of `{}`",
                    written(ty)
                ),
            ),
            Type::TraitObject(_) => self.at(
                ty,
                format!(
                    "{what} travels to another process, which a trait object cannot: write the type itself, \
                     or `hatchery::Error` for an error of any kind"
                ),
            ),
            Type::BareFn(_) => self.at(
                ty,
                format!(
                    "{what} travels to another process, which a function cannot: write a `#[hatchery::task]`"
                ),
            ),
            Type::Ptr(_) => self.at(
                ty,
                format!("{what} travels to another process, which a pointer cannot: write the value"),
            ),
            Type::Tuple(tuple) => tuple.elems.iter().for_each(|ty| self.of_type(ty, what)),
            Type::Array(array) => self.of_type(&array.elem, what),
            Type::Slice(slice) => self.of_type(&slice.elem, what),
            Type::Paren(paren) => self.of_type(&paren.elem, what),
            Type::Group(group) => self.of_type(&group.elem, what),
            Type::Path(path) => {
                for segment in &path.path.segments {
                    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { continue };
                    for argument in &arguments.args {
                        match argument {
                            GenericArgument::Type(ty) => self.of_type(ty, what),
                            GenericArgument::AssocType(binding) => self.of_type(&binding.ty, what),
                            GenericArgument::Lifetime(lifetime) if lifetime.ident != "static" => self.at(
                                lifetime,
                                format!(
                                    "{what} travels to another process and cannot be borrowed: \
                                     write `'static` instead of `{lifetime}`, or an owned type"
                                ),
                            ),
                            _ => {}
                        }
                    }
                }
            }
            // `_`, macros and what else there is: rustc and serde know better.
            _ => {}
        }
    }
}

/// The owned type that says the same as a borrowed one.
fn owned_instead_of(reference: &TypeReference) -> String {
    match peeled(&reference.elem) {
        Type::Slice(slice) => format!("Vec<{}>", written(&slice.elem)),
        Type::Path(path) => match last_name(&path.path).as_deref() {
            Some("str") => "String".to_owned(),
            Some("Path") => "PathBuf".to_owned(),
            Some("OsStr") => "OsString".to_owned(),
            Some("CStr") => "CString".to_owned(),
            _ => written(path),
        },
        Type::TraitObject(_) | Type::ImplTrait(_) => "the type itself".to_owned(),
        Type::Reference(inner) => owned_instead_of(inner),
        other => written(other),
    }
}

/// The first lifetime among these tokens that is not `'static`; a plain `&` has one, too.
fn lifetime_in(tokens: TokenStream) -> Option<String> {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let found = match token {
            TokenTree::Group(group) => lifetime_in(group.stream()),
            TokenTree::Punct(punct) if punct.as_char() == '\'' => match tokens.next() {
                Some(TokenTree::Ident(name)) if name != "static" => Some(format!("'{name}")),
                _ => None,
            },
            TokenTree::Punct(punct) if punct.as_char() == '&' => {
                let named = matches!(tokens.peek(), Some(TokenTree::Punct(next)) if next.as_char() == '\'');
                (!named).then(|| "&".to_owned())
            }
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Tokens as one would write them; `TokenStream` puts a space between any two.
pub(crate) fn written(tokens: impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (spaced, tight) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" < ", "<"),
        (" >", ">"),
        ("< ", "<"),
        (" ,", ","),
        (" ;", ";"),
        ("& ", "&"),
        ("* ", "*"),
    ] {
        text = text.replace(spaced, tight);
    }
    text
}

/// The arguments as one type: none is `()`, one is itself, more are a tuple.
pub(crate) fn as_one(many: &[TokenStream]) -> TokenStream {
    match many {
        [one] => one.clone(),
        many => quote!((#(#many),*)),
    }
}

/// What a function returns, written or not.
pub(crate) fn result_of(signature: &Signature) -> Type {
    match &signature.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, ty) => (**ty).clone(),
    }
}

/// Whether a type is literally a `Result`, alias or not.
pub(crate) fn is_result(ty: &Type) -> bool {
    matches!(peeled(ty), Type::Path(path) if last_name(&path.path).as_deref() == Some("Result"))
}

/// The `T` and the `E` of a literal `Result<T, E>`; an alias with fewer arguments hides them.
pub(crate) fn result_parts(ty: &Type) -> Option<(&Type, &Type)> {
    let Type::Path(path) = peeled(ty) else { return None };
    let PathArguments::AngleBracketed(arguments) = &path.path.segments.last()?.arguments else { return None };
    let mut arguments = arguments.args.iter();
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(GenericArgument::Type(ok)), Some(GenericArgument::Type(err)), None) => Some((ok, err)),
        _ => None,
    }
}

/// Whether a type is literally `Vec<u8>`, which travels as a byte string rather than number by number.
pub(crate) fn is_bytes(ty: &Type) -> bool {
    let text = written(peeled(ty));
    let text = text.strip_prefix("::").unwrap_or(&text);
    matches!(text, "Vec<u8>" | "std::vec::Vec<u8>" | "alloc::vec::Vec<u8>")
}

/// Whether a type is `&Context`, which the far side fills in.
pub(crate) fn is_context(ty: &Type) -> bool {
    let Type::Reference(reference) = peeled(ty) else { return false };
    matches!(peeled(&reference.elem), Type::Path(path) if last_name(&path.path).as_deref() == Some("Context"))
}

/// For a literal `Reply<T>`, its `T`; nothing in that for a `Reply` of anything else.
pub(crate) fn answered_by(ty: &Type) -> Option<Option<&Type>> {
    let Type::Path(path) = peeled(ty) else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == "Reply")?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return Some(None) };
    let mut arguments = arguments.args.iter();
    match (arguments.next(), arguments.next()) {
        (Some(GenericArgument::Type(answer)), None) => Some(Some(answer)),
        _ => Some(None),
    }
}

/// The name a pattern binds, if it binds the whole parameter to one.
pub(crate) fn bound_name(pattern: &Pat) -> Option<&syn::Ident> {
    match pattern {
        Pat::Ident(bound) if bound.subpat.is_none() => Some(&bound.ident),
        _ => None,
    }
}

pub(crate) fn last_name(path: &Path) -> Option<String> {
    path.segments.last().map(|segment| segment.ident.to_string())
}

/// The type without the parentheses and invisible groups (of `macro_rules`) around it.
pub(crate) fn peeled(ty: &Type) -> &Type {
    match ty {
        Type::Paren(paren) => peeled(&paren.elem),
        Type::Group(group) => peeled(&group.elem),
        other => other,
    }
}

/// `impl Stream<..>`, whichever crate it names it by.
pub(crate) fn is_stream(ty: &Type) -> bool {
    matches!(ty, Type::ImplTrait(stream) if stream.bounds.iter().any(is_bound_stream))
}

fn is_bound_stream(bound: &TypeParamBound) -> bool {
    matches!(bound, TypeParamBound::Trait(bound) if last_name(&bound.path).as_deref() == Some("Stream"))
}

/// Generated code that errors show at `place`, yet is known to lints as generated.
pub(crate) fn shown_at(place: Span) -> Span {
    Span::call_site().located_at(place)
}

/// An attribute macro that takes no options was given some.
pub(crate) fn refuse_options(options: &TokenStream, attribute: &str, instead: &str) -> syn::Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    Err(syn::Error::new_spanned(
        options,
        format!("`#[hatchery::{attribute}]` takes no options yet: {instead}"),
    ))
}

/// What a function with an attribute becomes: the constant that it stands for; or what is wrong with it, and what stands in for
/// that constant, so that those who name it are not refused, too.
pub(crate) fn constant_or_told<T>(
    read: syn::Result<(T, Refusals)>,
    item: &TokenStream,
    constant: impl Fn(&T) -> TokenStream,
    stand_in: impl Fn(&T) -> TokenStream,
) -> TokenStream {
    let (function, refusals) = match read {
        Ok(read) => read,
        Err(error) => return told_beside(&error, item),
    };
    match refusals.none_or(()) {
        Ok(()) => constant(&function),
        Err(error) => told_beside(&error, &stand_in(&function)),
    }
}

/// The error, and the item as it was written so that nothing else that names it fails too.
pub(crate) fn told_beside(error: &syn::Error, item: &TokenStream) -> TokenStream {
    let error = error.to_compile_error();
    quote!(#error #item)
}

#[cfg(test)]
pub(crate) use tests::{assert_contains, file_without_spaces, messages_of, tokens, without_spaces};

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    /// What an attribute macro gets. (`quote!` would have rustfmt spread it over many lines.)
    pub(crate) fn tokens(text: &str) -> TokenStream {
        text.parse().expect("tokens of Rust")
    }

    pub(crate) fn without_spaces(text: &str) -> String {
        text.split_whitespace().collect()
    }

    /// An expansion as tests compare it: a whole file without the spaces, and not an error.
    #[track_caller]
    pub(crate) fn file_without_spaces(expansion: TokenStream) -> String {
        let text = without_spaces(&expansion.to_string());
        syn::parse2::<syn::File>(expansion).expect("an expansion is a file");
        assert!(!text.contains("compile_error"), "{text}");
        text
    }

    /// The part may be written with spaces.
    #[track_caller]
    pub(crate) fn assert_contains(text: &str, part: &str) {
        assert!(text.contains(&without_spaces(part)), "{text}\n\ndoes not contain\n\n{part}");
    }

    /// Every refusal, a line each; nothing if there is none.
    pub(crate) fn messages_of<T>(read: syn::Result<T>) -> String {
        let errors = read.err().into_iter().flatten();
        errors.map(|error| error.to_string() + "\n").collect()
    }

    fn refusal_of_parameter(ty: Type) -> String {
        let mut refusals = Refusals::default();
        refusals.of_parameter(&ty);
        messages_of(refusals.none_or(()))
    }

    #[test]
    fn a_borrowed_parameter_names_the_owned_type() {
        for (ty, instead) in [
            (parse_quote!(&str), "write `String` instead of `&str`"),
            (parse_quote!(&'static str), "write `String` instead of `&'static str`"),
            (parse_quote!(&[u8]), "write `Vec<u8>` instead of `&[u8]`"),
            (parse_quote!(&[(u8, String)]), "write `Vec<(u8, String)>`"),
            (parse_quote!(&std::path::Path), "write `PathBuf`"),
            (parse_quote!(&Order), "write `Order` instead of `&Order`"),
            (parse_quote!(&mut HashMap<String, u64>), "write `HashMap<String, u64>`"),
            (parse_quote!(Option<&str>), "write `String` instead of `&str`"),
            (parse_quote!((u64, Vec<&[u8]>)), "write `Vec<u8>` instead of `&[u8]`"),
            (parse_quote!([&str; 2]), "write `String`"),
            (parse_quote!(Cow<'_, str>), "write `'static` instead of `'_`"),
        ] {
            let refusal = refusal_of_parameter(ty);
            assert!(refusal.contains(instead), "{refusal:?} does not say {instead:?}");
        }
    }

    #[test]
    fn what_has_no_meaning_elsewhere_is_refused() {
        for (ty, why) in [
            (parse_quote!(impl Into<String>), "write the type itself instead of `impl Into<String>`"),
            (parse_quote!(Box<dyn Fn()>), "a trait object cannot"),
            (parse_quote!(fn(u64) -> u64), "write a `#[hatchery::task]`"),
            (parse_quote!(*const u8), "a pointer cannot"),
        ] {
            let refusal = refusal_of_parameter(ty);
            assert!(refusal.contains(why), "{refusal:?} does not say {why:?}");
        }
    }

    #[test]
    fn owned_types_pass() {
        for ty in [
            parse_quote!(u64),
            parse_quote!(Vec<Option<String>>),
            parse_quote!(Cow<'static, str>),
            parse_quote!((u8, [u8; 4])),
            parse_quote!(std::collections::HashMap<String, Vec<u8>>),
        ] {
            assert_eq!(refusal_of_parameter(ty), "");
        }
    }

    #[test]
    fn a_result_that_never_comes_is_refused() {
        let mut refusals = Refusals::default();
        refusals.of_result(&parse_quote!(!));
        assert!(refusals.none_or(()).unwrap_err().to_string().contains("write `()`"));
    }

    #[test]
    fn only_a_literal_vec_of_u8_is_bytes() {
        assert!(is_bytes(&parse_quote!(Vec<u8>)));
        assert!(is_bytes(&parse_quote!(std::vec::Vec<u8>)));
        assert!(is_bytes(&parse_quote!(::std::vec::Vec<u8>)));
        assert!(!is_bytes(&parse_quote!(Vec<i8>)));
        assert!(!is_bytes(&parse_quote!(Option<Vec<u8>>)));
    }

    #[test]
    fn a_result_is_known_by_its_last_name() {
        assert!(is_result(&parse_quote!(Result<u8, E>)));
        assert!(is_result(&parse_quote!(std::io::Result<u8>)));
        assert!(!is_result(&parse_quote!(Option<Result<u8, E>>)));
        assert!(result_parts(&parse_quote!(Result<u8, E>)).is_some());
        assert!(result_parts(&parse_quote!(hatchery::Result<u8>)).is_none());
        assert!(result_parts(&parse_quote!(fmt::Result)).is_none());
    }

    #[test]
    fn a_context_is_known_by_its_last_name() {
        assert!(is_context(&parse_quote!(&Context)));
        assert!(is_context(&parse_quote!(&hatchery::Context)));
        assert!(!is_context(&parse_quote!(Context)));
        assert!(!is_context(&parse_quote!(&str)));
    }

    #[test]
    fn arguments_become_one_type() {
        assert_eq!(as_one(&[]).to_string(), "()");
        assert_eq!(as_one(&[quote!(u8)]).to_string(), "u8");
        assert_eq!(written(as_one(&[quote!(u8), quote!(u16)])), "(u8, u16)");
    }
}
