//! `#[main]` and `#[test]`: the two doors through which a process enters, ahead of any runtime or thread.

use std::collections::HashSet;

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{AttrStyle, Attribute, Expr, ExprLit, ItemFn, Lit, Meta, Token, punctuated::Punctuated};

use crate::travel::{Refusals, last_name, result_of, shown_at};

pub(crate) fn expand_main(options: TokenStream, item: TokenStream) -> TokenStream {
    read("main", options, item)
        .and_then(|entry| {
            let name = &entry.function.sig.ident;
            if name != "main" {
                return Err(syn::Error::new_spanned(
                    name,
                    "the door of a program is its main: write `async fn main()`, or \
                     `hatchery::program().run(..)` as the first thing that the real one does",
                ));
            }
            Ok(entry.main())
        })
        .unwrap_or_else(|error| {
            let error = error.to_compile_error();
            // Without it rustc would go on about a missing main.
            quote!(#error fn main() {})
        })
}

pub(crate) fn expand_test(options: TokenStream, item: TokenStream) -> TokenStream {
    read("test", options, item.clone())
        .and_then(|entry| {
            let ItemFn { attrs, sig, .. } = &entry.function;
            if let Some(second) = attrs.iter().find(|attr| last_name(attr.path()).as_deref() == Some("test")) {
                return Err(syn::Error::new_spanned(
                    second,
                    "`#[hatchery::test]` makes a test already: leave this attribute out",
                ));
            }
            if let (syn::ReturnType::Type(_, ty), true) = (&sig.output, attrs.iter().any(|a| should_panic(a).is_some())) {
                return Err(syn::Error::new_spanned(
                    ty,
                    "a test that should panic returns nothing, or an error would pass for a panic: leave the result \
                     out, and `unwrap` what may fail",
                ));
            }
            Ok(entry.test())
        })
        .unwrap_or_else(|error| {
            let error = error.to_compile_error();
            let untouched = syn::parse2::<ItemFn>(item).ok().map(|mut function| {
                function.attrs.retain(|attr| last_name(attr.path()).as_deref() != Some("test"));
                quote!(#[allow(dead_code, reason = "it would be a test, but for the error")] #function)
            });
            quote!(#error #untouched)
        })
}

/// An async function that starts a program or a test.
struct Entry {
    function: ItemFn,
    options: Options,
}

/// The options, as calls of a builder: that of a program, or that of a test, which has the last two as well.
#[derive(Default)]
struct Options {
    flavor: Option<TokenStream>,
    worker_threads: Option<usize>,
    program: Option<syn::ExprPath>,
    patience: Option<u64>,
}

fn read(attribute: &str, options: TokenStream, item: TokenStream) -> syn::Result<Entry> {
    let function: ItemFn = syn::parse2(item).map_err(|error| {
        syn::Error::new(
            error.span(),
            format!("`#[hatchery::{attribute}]` goes on a function: write `async fn name()`"),
        )
    })?;
    let mut refusals = Refusals::default();
    let what = if attribute == "main" { "a main" } else { "a test" };
    refusals.of_signature(&function.sig, what);
    if function.sig.asyncness.is_none() {
        refusals.at(
            function.sig.fn_token,
            format!("{what} of hatchery is async: write `async fn {}()`", function.sig.ident),
        );
    }
    if !function.sig.inputs.is_empty() {
        refusals.at(&function.sig.inputs, format!("{what} has no parameters: leave them out"));
    }
    if let syn::ReturnType::Type(_, ty) = &function.sig.output {
        if matches!(**ty, syn::Type::ImplTrait(_)) {
            refusals.at(ty, "write the type itself, such as `hatchery::Result<()>`");
        }
    }
    let options = match Options::read(options, attribute == "test") {
        Ok(options) => options,
        Err(error) => {
            refusals.add(error);
            Options::default()
        }
    };
    refusals.none_or(Entry { function, options })
}

impl Options {
    fn read(options: TokenStream, of_test: bool) -> syn::Result<Options> {
        let mut read = Options::default();
        let mut current_thread = false;
        let mut refusals = Refusals::default();
        let mut known = HashSet::new();
        for meta in Punctuated::<Meta, Token![,]>::parse_terminated.parse2(options)? {
            let name = meta.path().get_ident().map(ToString::to_string).unwrap_or_default();
            let value = match &meta {
                Meta::NameValue(pair) => match &pair.value {
                    Expr::Lit(ExprLit { lit, .. }) => Some(lit),
                    _ => None,
                },
                _ => None,
            };
            match (&*name, value) {
                _ if !known.insert(name.clone()) => {
                    refusals.at(&meta, format!("`{name}` is given twice: keep one"));
                }
                ("flavor", Some(Lit::Str(flavor))) if flavor.value() == "current_thread" => {
                    current_thread = true;
                    read.flavor = Some(quote!(CurrentThread));
                }
                ("flavor", Some(Lit::Str(flavor))) if flavor.value() == "multi_thread" => {
                    read.flavor = Some(quote!(MultiThread));
                }
                ("flavor", _) => {
                    refusals.at(&meta, "write `flavor = \"current_thread\"` or `flavor = \"multi_thread\"`");
                }
                ("worker_threads", Some(Lit::Int(count))) => match count.base10_parse::<usize>() {
                    Ok(count) if count > 0 => read.worker_threads = Some(count),
                    _ => refusals.at(count, "write `worker_threads = N` with an N of at least 1"),
                },
                ("worker_threads", _) => refusals.at(&meta, "write `worker_threads = N`, N being a plain number"),
                ("program", _) if of_test => match &meta {
                    Meta::NameValue(syn::MetaNameValue { value: Expr::Path(path), .. }) => {
                        read.program = Some(path.clone());
                    }
                    _ => refusals.at(
                        &meta,
                        "write `program = name`, the name being that of a `fn name() -> hatchery::Door`",
                    ),
                },
                ("patience", Some(Lit::Int(seconds))) if of_test => match seconds.base10_parse::<u64>() {
                    Ok(seconds) if seconds > 0 => read.patience = Some(seconds),
                    _ => refusals.at(seconds, "write `patience = N` with an N of at least 1, in seconds"),
                },
                ("patience", _) if of_test => {
                    refusals.at(&meta, "write `patience = N`, N being a plain number of seconds");
                }
                ("start_paused", _) => refusals.at(
                    meta.path(),
                    "paused time runs ahead whenever this process waits for another one, so that every deadline \
                     would be over at once: leave `start_paused` out, and where no worker takes part write \
                     `tokio::time::pause()` (tokio's feature `test-util`) in the test",
                ),
                _ => refusals.at(
                    meta.path(),
                    format!(
                        "unknown option `{}`: write `flavor = \"current_thread\"`, `flavor = \"multi_thread\"`{}",
                        crate::travel::written(meta.path()),
                        if of_test {
                            ", `worker_threads = N`, `program = name` or `patience = N`"
                        } else {
                            " or `worker_threads = N`"
                        }
                    ),
                ),
            }
        }
        if current_thread && read.worker_threads.is_some() {
            refusals.add(syn::Error::new(
                Span::call_site(),
                "`worker_threads` are those of `flavor = \"multi_thread\"`: write that, or leave them out",
            ));
        }
        refusals.none_or(read)
    }

    fn calls(&self) -> TokenStream {
        let flavor = self.flavor.as_ref().map(|flavor| quote!(.flavor(::hatchery::Flavor::#flavor)));
        let worker_threads = self.worker_threads.map(|count| {
            let count = proc_macro2::Literal::usize_unsuffixed(count);
            quote!(.worker_threads(#count))
        });
        let program = self.program.as_ref().map(|program| quote!(.program(#program)));
        let patience = self.patience.map(|seconds| {
            let seconds = proc_macro2::Literal::u64_unsuffixed(seconds);
            quote!(.patience(::core::time::Duration::from_secs(#seconds)))
        });
        quote!(#flavor #worker_threads #program #patience)
    }
}

impl Entry {
    fn main(mut self) -> TokenStream {
        let body = self.body();
        let calls = self.options.calls();
        let ItemFn { attrs, vis, sig, .. } = &self.function;
        let name = &sig.ident;
        // A result that is none for a main is refused where it is written.
        let run = quote_spanned!(shown_at(result_of(sig).span())=> ::hatchery::program() #calls .run(#body));
        quote! {
            #(#attrs)*
            #vis fn #name() {
                #run
            }
        }
    }

    fn test(mut self) -> TokenStream {
        let body = self.body();
        let calls = self.options.calls();
        let should_panic = self.function.attrs.iter().find_map(should_panic);
        let should_panic = should_panic.map(|when| quote!(.should_panic(#when)));
        let ItemFn { attrs, vis, sig, .. } = &self.function;
        let name = &sig.ident;
        let run = quote_spanned! {shown_at(result_of(sig).span())=>
            ::hatchery::__private::test(
                ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
                ::hatchery::__private::TestOptions::new() #calls #should_panic,
                #body,
            )
        };
        quote! {
            #[::core::prelude::v1::test]
            #(#attrs)*
            #vis fn #name() {
                #run
            }
        }
    }

    /// The function's body as a closure. Its inner attributes move to the function around it.
    fn body(&mut self) -> TokenStream {
        for attribute in &mut self.function.attrs {
            attribute.style = AttrStyle::Outer;
        }
        let result = result_of(&self.function.sig);
        let block = &self.function.block;
        quote!(async || -> #result #block)
    }
}

/// When a test should panic, if an attribute says so.
fn should_panic(attribute: &Attribute) -> Option<TokenStream> {
    if attribute.path().is_ident("should_panic") {
        return Some(quote!(true));
    }
    if !attribute.path().is_ident("cfg_attr") {
        return None;
    }
    let metas = attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
    let condition = metas.first()?;
    metas
        .iter()
        .skip(1)
        .any(|meta| meta.path().is_ident("should_panic"))
        .then(|| quote!(::core::cfg!(#condition)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::travel::{assert_contains, file_without_spaces, tokens, without_spaces};

    fn main_of(options: &str, item: &str) -> String {
        file_without_spaces(expand_main(tokens(options), tokens(item)))
    }

    fn test_of(options: &str, item: &str) -> String {
        file_without_spaces(expand_test(tokens(options), tokens(item)))
    }

    #[test]
    fn main_enters_through_the_door() {
        assert_eq!(
            main_of("", "#[doc = \"x\"] async fn main() -> hatchery::Result<()> { go().await }"),
            without_spaces(
                "#[doc = \"x\"] fn main() {
                    ::hatchery::program().run(async || -> hatchery::Result<()> { go().await })
                }"
            )
        );
    }

    #[test]
    fn options_become_calls_of_the_builder() {
        let options = "flavor = \"multi_thread\", worker_threads = 2";
        let calls = ".flavor(::hatchery::Flavor::MultiThread).worker_threads(2)";
        assert_contains(&main_of(options, "async fn main() {}"), &format!("program(){calls}.run("));
        assert_contains(&test_of(options, "async fn t() {}"), &format!("TestOptions::new(){calls},"));
        assert_contains(
            &main_of("flavor = \"current_thread\"", "async fn main() {}"),
            "Flavor::CurrentThread",
        );
    }

    #[test]
    fn a_test_keeps_its_attributes_and_knows_its_name() {
        assert_eq!(
            test_of("", "#[should_panic] #[ignore = \"slow\"] async fn comes_back() { f() }"),
            without_spaces(
                "#[::core::prelude::v1::test] #[should_panic] #[ignore = \"slow\"] fn comes_back() {
                    ::hatchery::__private::test(
                        ::core::concat!(::core::module_path!(), \"::\", ::core::stringify!(comes_back)),
                        ::hatchery::__private::TestOptions::new().should_panic(true),
                        async || -> () { f() },
                    )
                }"
            )
        );
    }

    #[test]
    fn every_mistake_says_what_to_write() {
        for (options, item, why) in [
            ("", "fn main() {}", "write `async fn main()`"),
            ("", "async fn main(x: u8) {}", "has no parameters"),
            ("", "async fn main<T>() {}", "cannot be generic"),
            ("", "async fn main() -> impl Termination {}", "such as `hatchery::Result<()>`"),
            ("", "struct Main;", "goes on a function"),
            ("", "async fn run() {}", "write `async fn main()`"),
            ("flavour = \"x\"", "async fn main() {}", "unknown option `flavour`"),
            ("flavor = \"x\"", "async fn main() {}", "`flavor = \\\"multi_thread\\\"`"),
            ("flavor", "async fn main() {}", "write `flavor ="),
            ("flavor = \"multi_thread\", flavor = \"multi_thread\"", "async fn main() {}", "given twice"),
            ("worker_threads = 0", "async fn main() {}", "at least 1"),
            ("worker_threads = \"2\"", "async fn main() {}", "a plain number"),
            ("worker_threads = 2, worker_threads = 2", "async fn main() {}", "given twice"),
            ("flavor = \"current_thread\", worker_threads = 2", "async fn main() {}", "leave them out"),
        ] {
            let text = expand_main(tokens(options), tokens(item)).to_string();
            assert!(text.contains(why), "{item}: {text} does not say {why:?}");
            assert!(text.ends_with("fn main () { }"), "{text}");
        }
    }

    #[test]
    fn a_test_has_options_of_its_own() {
        assert_contains(
            &test_of("program = crate::my_program, patience = 5", "async fn t() {}"),
            "TestOptions::new().program(crate::my_program).patience(::core::time::Duration::from_secs(5)),",
        );
        assert_contains(
            &test_of("", "#[cfg_attr(unix, should_panic)] async fn t() {}"),
            "TestOptions::new().should_panic(::core::cfg!(unix)),",
        );
        for (options, item, why) in [
            ("patience = 0", "async fn t() {}", "at least 1"),
            ("patience = \"5\"", "async fn t() {}", "a plain number of seconds"),
            ("program = || door()", "async fn t() {}", "a `fn name() -> hatchery::Door`"),
            ("program", "async fn t() {}", "write `program = name`"),
            ("start_paused = true", "async fn t() {}", "write `tokio::time::pause()`"),
            ("other = 1", "async fn t() {}", "`program = name` or `patience = N`"),
            ("", "#[should_panic] async fn t() -> hatchery::Result<()> { Ok(()) }", "leave the result out"),
        ] {
            let text = expand_test(tokens(options), tokens(item)).to_string();
            assert!(text.contains(why), "{options} {item}: {text} does not say {why:?}");
        }
        for option in ["program = x", "patience = 5"] {
            let text = expand_main(tokens(option), tokens("async fn main() {}")).to_string();
            assert!(text.contains("unknown option"), "{option}: {text}");
        }
    }

    #[test]
    fn a_test_that_is_none_stays_as_it_was() {
        let text = expand_test(quote!(), tokens("#[test] async fn t() {}")).to_string();
        assert!(text.contains("leave this attribute out"), "{text}");
        assert!(text.ends_with("async fn t () { }"), "{text}");
        let text = expand_test(quote!(), tokens("fn t() {}")).to_string();
        assert!(text.contains("write `async fn t()`"), "{text}");
    }
}
