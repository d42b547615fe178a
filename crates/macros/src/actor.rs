//! `#[actor]`: from the impl block of an actor, its messages as data, their dispatch, and the handle that sends them.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{
    Attribute, FnArg, GenericParam, Ident, ImplItem, ImplItemFn, Item, ItemImpl, Receiver, Signature,
    TraitBoundModifier, Type, TypeParamBound, Visibility, parse_quote,
};

use crate::stream::{Streamed, let_outlive, streamed};
use crate::travel::{
    Refusals, answered_by, as_one, bound_name, is_bytes, is_context, is_result, last_name, peeled, result_of,
    result_parts, shown_at, told_beside, written,
};

pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    match Actor::read(&options, item.clone()) {
        Ok((actor, refusals)) => {
            let errors = refusals.none_or(()).err().map(|error| error.to_compile_error());
            let actor = actor.written_out();
            quote!(#errors #actor)
        }
        Err(error) => told_beside(&error, &item),
    }
}

/// An impl block read as an actor.
struct Actor {
    block: ItemImpl,
    /// The last name of the type; handle and messages are named after it.
    name: Ident,
    /// `None` only beside an error.
    start: Option<Function>,
    stopped: Option<Function>,
    messages: Vec<Message>,
    /// Whether its futures are `Send`, as they are unless it says `not_send`.
    is_send: bool,
}

/// What the dispatch must know of a function to call it.
struct Function {
    name: Ident,
    is_async: bool,
    parameters: Vec<Parameter>,
    /// Where its result is written.
    result: Span,
}

/// A parameter is filled in where the actor lives, or travels there.
enum Parameter {
    Context,
    Reply,
    Field { name: Ident, ty: Box<Type> },
}

/// A method that others may ask for.
struct Message {
    function: Function,
    variant: Ident,
    visibility: Visibility,
    /// What the handle's method has in common with the one written: documentation, conditions.
    attributes: Vec<Attribute>,
    /// What its caller gets: what it returns, or what its `Reply` is of.
    result: Type,
    /// What the result yields, if it is a stream.
    stream: Option<Streamed>,
    /// Whether a `Reply` gives the answer.
    is_put_off: bool,
    /// Whether it is dropped when its caller leaves.
    is_cut: bool,
}

impl Actor {
    /// The actor without the methods that are refused: one mistake should not be told again wherever the actor is used.
    fn read(options: &TokenStream, item: TokenStream) -> syn::Result<(Actor, Refusals)> {
        let is_send = read_options(options)?;
        let mut block = match syn::parse2(item)? {
            Item::Impl(block) => block,
            other => {
                return Err(syn::Error::new_spanned(
                    other,
                    "an actor is the impl block that says what it does: write `#[hatchery::actor] impl Name { .. }`",
                ));
            }
        };
        if let Some((_, path, _)) = &block.trait_ {
            return Err(syn::Error::new_spanned(
                path,
                format!(
                    "an actor's messages are methods of its own, not of a trait: write `impl {} {{ .. }}`",
                    written(&block.self_ty)
                ),
            ));
        }
        let name = match peeled(&block.self_ty) {
            Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.clone()),
            _ => None,
        };
        let Some(name) = name else {
            return Err(syn::Error::new_spanned(
                &block.self_ty,
                "an actor is a struct or an enum: write `impl Name { .. }`",
            ));
        };

        let mut refusals = Refusals::default();
        for lifetime in block.generics.lifetimes() {
            refusals.at(lifetime, "an actor lives in another process and cannot borrow: write owned types");
        }
        refusals.none_or(())?;

        let mut refusals = Refusals::default();
        let mut start = None;
        let mut stopped = None;
        let mut messages: Vec<Message> = Vec::new();
        for item in &block.items {
            let ImplItem::Fn(method) = item else { continue };
            let name = &method.sig.ident;
            if name == "start" || name == "stopped" {
                for attribute in method.attrs.iter().filter(|attribute| is_ours(attribute)) {
                    refusals.at(attribute, format!("`{name}` is no message: leave this out"));
                }
            }
            if name == "start" {
                if start.is_some() {
                    refusals.at(name, "`start` is there twice: an actor starts in one way");
                }
                start.get_or_insert_with(|| read_start(method, &block.self_ty));
            } else if name == "stopped" {
                if stopped.is_some() {
                    refusals.at(name, "`stopped` is there twice: write one");
                }
                stopped = refusals.unless(read_stopped(method));
            } else {
                let message = read_message(method, &block.self_ty);
                messages.extend(refusals.unless(message.and_then(|message| message.unlike(&messages))));
            }
        }
        for item in &mut block.items {
            let ImplItem::Fn(method) = item else { continue };
            method.attrs.retain(|attribute| !is_ours(attribute));
            let_outlive(&mut method.sig, &block.generics);
        }
        let missing =
            || Err(syn::Error::new_spanned(&block.self_ty, "an actor needs `fn start(..) -> Self`"));
        let start = refusals.unless(start.unwrap_or_else(missing));
        Ok((Actor { block, name, start, stopped, messages, is_send }, refusals))
    }

    fn written_out(&self) -> TokenStream {
        let Actor { block, .. } = self;
        let conditions: Vec<_> = conditions(&block.attrs).collect();
        let handle = self.handle();
        let messages = self.messages();
        let behaviour = self.behaviour();
        let handle_methods = self.handle_methods();
        let registration = self.registration();
        // The messages are `pub`, but inside the `const _`, where nobody can name them: so a method may take a type that
        // is as private as itself.
        quote! {
            #[allow(
                clippy::missing_const_for_fn,
                clippy::needless_pass_by_ref_mut,
                clippy::needless_pass_by_value,
                clippy::unnecessary_wraps,
                clippy::unused_async,
                clippy::unused_self,
                reason = "a message has an owner and an answer, whatever its handler makes of them"
            )]
            #block

            #handle

            #(#conditions)*
            const _: () = {
                #messages
                #behaviour
                #handle_methods
                #registration
            };
        }
    }

    fn handle_name(&self) -> Ident {
        format_ident!("{}Handle", self.name.unraw(), span = self.name.span())
    }

    /// It shadows what is outside, and an actor called `Chat` may well have a type `ChatMessage` of its own.
    fn message_name(&self) -> Ident {
        format_ident!("__{}Message", self.name.unraw(), span = shown_at(self.name.span()))
    }

    fn handle(&self) -> TokenStream {
        let handle = self.handle_name();
        let name = handle.to_string();
        let conditions: Vec<_> = conditions(&self.block.attrs).collect();
        let documentation = match peeled(&self.block.self_ty) {
            Type::Path(path) => {
                let segments = path.path.segments.iter().map(|segment| segment.ident.to_string());
                format!("Handle of [`{}`].", segments.collect::<Vec<_>>().join("::"))
            }
            _ => String::new(),
        };
        let bare = self.bare_generics();
        let (declared, arguments, _) = bare.split_for_impl();
        let types = bare.type_params().map(|parameter| &parameter.ident);
        let actor = &self.block.self_ty;
        // To name the actor takes its bounds.
        let bounds = self.block.generics.split_for_impl().2;
        let mut decoding = self.block.generics.clone();
        decoding.params.insert(0, parse_quote!('de));
        let (decoding, ..) = decoding.split_for_impl();
        quote! {
            #(#conditions)*
            #[doc = #documentation]
            #[allow(
                rustdoc::private_intra_doc_links,
                unreachable_pub,
                reason = "a handle is public, its actor and the module around them need not be"
            )]
            pub struct #handle #declared (
                ::hatchery::__private::ActorRef,
                ::core::marker::PhantomData<fn() -> (#(#types,)*)>,
            );

            #(#conditions)*
            impl #declared ::core::convert::From<::hatchery::__private::ActorRef> for #handle #arguments {
                fn from(__actor: ::hatchery::__private::ActorRef) -> Self {
                    Self(__actor, ::core::marker::PhantomData)
                }
            }

            #(#conditions)*
            impl #declared ::hatchery::__private::AnyHandle for #handle #arguments {
                fn actor_ref(&self) -> &::hatchery::__private::ActorRef {
                    &self.0
                }
            }

            #(#conditions)*
            impl #declared ::core::clone::Clone for #handle #arguments {
                fn clone(&self) -> Self {
                    Self(::core::clone::Clone::clone(&self.0), ::core::marker::PhantomData)
                }
            }

            #(#conditions)*
            impl #declared ::hatchery::__private::serde::Serialize for #handle #arguments {
                fn serialize<__S: ::hatchery::__private::serde::Serializer>(
                    &self,
                    __serializer: __S,
                ) -> ::core::result::Result<__S::Ok, __S::Error> {
                    ::hatchery::__private::serde::Serialize::serialize(&self.0, __serializer)
                }
            }

            #(#conditions)*
            impl #decoding ::hatchery::__private::serde::Deserialize<'de> for #handle #arguments #bounds {
                fn deserialize<__D: ::hatchery::__private::serde::Deserializer<'de>>(
                    __deserializer: __D,
                ) -> ::core::result::Result<Self, __D::Error> {
                    let __name = <#actor as ::hatchery::__private::AnyActor>::name();
                    let __actor = ::hatchery::__private::ActorRef::deserialize(__deserializer, __name);
                    ::core::result::Result::map(__actor, ::core::convert::From::from)
                }
            }

            #(#conditions)*
            impl #declared ::core::fmt::Debug for #handle #arguments {
                fn fmt(&self, __f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    __f.debug_tuple(#name).field(&self.0).finish()
                }
            }
        }
    }

    /// The actor's generics without bounds: a handle holds none of its types, so it may be named without them.
    fn bare_generics(&self) -> syn::Generics {
        let mut generics = self.block.generics.clone();
        generics.where_clause = None;
        for parameter in &mut generics.params {
            if let GenericParam::Type(ty) = parameter {
                ty.bounds = std::mem::take(&mut ty.bounds)
                    .into_iter()
                    .filter(|bound| matches!(bound, TypeParamBound::Trait(bound) if matches!(bound.modifier, TraitBoundModifier::Maybe(_))))
                    .collect();
                if ty.bounds.is_empty() {
                    ty.colon_token = None;
                }
            }
        }
        generics
    }

    fn messages(&self) -> TokenStream {
        let message = self.message_name();
        let generics = &self.block.generics;
        let (declared, _, bounds) = generics.split_for_impl();
        let variants = self.messages.iter().map(|message| {
            let conditions = conditions(&message.attributes);
            let variant = &message.variant;
            let fields: Vec<_> = message
                .function
                .fields()
                .map(|(name, ty)| {
                    if is_bytes(ty) {
                        quote!(#name: ::hatchery::__private::ByteString)
                    } else {
                        quote!(#name: #ty)
                    }
                })
                .collect();
            if fields.is_empty() {
                quote!(#(#conditions)* #variant)
            } else {
                quote!(#(#conditions)* #variant { #(#fields),* })
            }
        });
        // Names the types that no message has, and cannot be made.
        let unused = self.is_generic().then(|| {
            let types = generics.type_params().map(|parameter| &parameter.ident);
            quote!(#[serde(skip)] __Never(
                ::core::marker::PhantomData<fn() -> (#(#types,)*)>,
                ::core::convert::Infallible,
            ))
        });
        let variants = variants.chain(unused);
        quote! {
            #[derive(::hatchery::__private::serde::Serialize, ::hatchery::__private::serde::Deserialize)]
            #[serde(crate = "::hatchery::__private::serde", bound = "")]
            #[allow(
                dead_code,
                missing_docs,
                non_camel_case_types,
                private_bounds,
                private_interfaces,
                unreachable_pub,
                clippy::large_enum_variant,
                reason = "nobody but the actor and its handle can name the messages"
            )]
            pub enum #message #declared #bounds { #(#variants),* }
        }
    }

    fn is_generic(&self) -> bool {
        !self.block.generics.params.is_empty()
    }

    fn behaviour(&self) -> TokenStream {
        let (declared, arguments, bounds) = self.block.generics.split_for_impl();
        let self_ty = &self.block.self_ty;
        let (message, handle) = (self.message_name(), self.handle_name());
        let fields = self.start.iter().flat_map(Function::fields);
        let args = as_one(&fields.map(|(_, ty)| quote!(#ty)).collect::<Vec<_>>());
        let name = if self.is_generic() {
            quote!(::core::any::type_name::<Self>())
        } else {
            let name = written(self_ty);
            quote!(::core::concat!(::core::module_path!(), "::", #name))
        };
        // `line!()` reports where its own token stands, so these stand where the actor's name does.
        let place = quote_spanned!(self.name.span()=> ::core::file!(), ::core::line!(), ::core::column!());
        let start = self.start.as_ref().map_or_else(
            || quote!(::core::unreachable!()),
            |start| {
                let pattern = as_one(&start.bindings().map(|name| quote!(#name)).collect::<Vec<_>>());
                let call = self.awaited(start, &quote!());
                let started = quote_spanned! {shown_at(start.result)=>
                    ::hatchery::__private::Started::<Self>::into_started(#call)
                };
                quote!(let #pattern = __args; #started)
            },
        );
        let arms = self.messages.iter().map(|one| one.arm(&message, self.is_send));
        let never = self.is_generic().then(|| quote!(#message::__Never(_, __never) => match __never {},));
        let (as_actor, and_send) = if self.is_send {
            (quote!(Actor), quote!(+ ::core::marker::Send))
        } else {
            (quote!(AnyActor), quote!())
        };
        let stopped = self.stopped.as_ref().map(|stopped| {
            let call = self.awaited(stopped, &quote!(self));
            // Without its method, `Self::stopped` would be the trait's, which calls `Self::stopped`.
            let conditions = self.block.items.iter().filter_map(|item| match item {
                ImplItem::Fn(method) if method.sig.ident == "stopped" => Some(conditions(&method.attrs)),
                _ => None,
            });
            let conditions = conditions.flatten();
            quote! {
                #(#conditions)*
                fn stopped(
                    &mut self,
                    __cx: &::hatchery::__private::Context,
                ) -> impl ::core::future::Future<Output = ()> #and_send {
                    async move { #call }
                }
            }
        });
        let must_be_send_unless_the_actor_says_not_send =
            (self.is_send && self.has_async_handlers()).then(|| {
                quote! {
                    /// Where a handler that is not `Send` is told so, once, rather than wherever that matters.
                    fn must_be_send_unless_the_actor_says_not_send<F>(
                        future: F,
                    ) -> impl ::core::future::Future<Output = F::Output> + ::core::marker::Send
                    where
                        F: ::core::future::Future + ::core::marker::Send,
                    {
                        future
                    }
                }
            });
        quote! {
            #must_be_send_unless_the_actor_says_not_send

            impl #declared ::hatchery::__private::#as_actor for #self_ty #bounds {
                type Args = #args;
                type Message = #message #arguments;
                type Handle = #handle #arguments;

                fn name() -> &'static str {
                    #name
                }

                fn place() -> ::hatchery::__private::Place {
                    ::hatchery::__private::Place::new(#place)
                }

                fn start(
                    __args: Self::Args,
                    __cx: &::hatchery::__private::Context,
                ) -> impl ::core::future::Future<
                    Output = ::core::result::Result<Self, ::hatchery::__private::Error>,
                > #and_send {
                    async move { #start }
                }

                fn handle(
                    &mut self,
                    __message: Self::Message,
                    __asked: bool,
                    __cx: &::hatchery::__private::Context,
                ) -> impl ::core::future::Future<Output = ::hatchery::__private::Answer> #and_send {
                    async move {
                        match __message {
                            #(#arms)*
                            #never
                        }
                    }
                }

                #stopped
            }
        }
    }

    fn has_async_handlers(&self) -> bool {
        let mut functions =
            self.messages.iter().map(|message| &message.function).chain(&self.start).chain(&self.stopped);
        functions.any(|function| function.is_async)
    }

    fn awaited(&self, function: &Function, receiver: &TokenStream) -> TokenStream {
        let call = function.call(receiver, self.is_send);
        if function.is_async { quote_spanned!(shown_at(function.name.span())=> #call.await) } else { call }
    }

    fn handle_methods(&self) -> TokenStream {
        let (declared, arguments, bounds) = self.block.generics.split_for_impl();
        let handle = self.handle_name();
        let message = self.message_name();
        let turbofish = arguments.as_turbofish();
        let methods = self.messages.iter().map(|one| {
            let Message { function, variant, visibility, attributes, .. } = one;
            let name = &function.name;
            let text = name.unraw().to_string();
            // The method as written lacks it too, and one warning for that is enough.
            let documentation =
                (!attributes.iter().any(|attribute| attribute.path().is_ident("doc"))).then(|| {
                    let text = format!("Sends `{text}` to the actor.");
                    quote!(#[doc = #text])
                });
            let parameters = function.fields().map(|(name, ty)| quote!(#name: #ty));
            let values: Vec<_> = function
                .fields()
                .map(|(name, ty)| {
                    if is_bytes(ty) {
                        quote!(#name: ::core::convert::From::from(#name))
                    } else {
                        quote!(#name)
                    }
                })
                .collect();
            let fields = (!values.is_empty()).then(|| quote!({ #(#values),* }));
            let ask = one.ask();
            let sent = quote!(#text, &#message #turbofish::#variant #fields);
            let sending = match &one.stream {
                Some(stream) if is_bytes(&stream.item) => {
                    quote!(self.0.items(#sent, ::hatchery::__private::take_bytes))
                }
                Some(stream) => {
                    let item = &stream.item;
                    // An item that cannot travel is refused where it is written, and here alone.
                    quote_spanned! {shown_at(item.span())=>
                        self.0.items(#sent, |__body| {
                            use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                            (&::hatchery::__private::Decoding::<#item>::new()).decoded(__body)
                        })
                    }
                }
                None if is_bytes(&one.result) => {
                    quote!(self.0.ask_with(#sent, ::hatchery::__private::take_bytes))
                }
                // A result that cannot travel is refused where it is written.
                None => quote_spanned!(shown_at(one.result.span())=> self.0.ask(#sent)),
            };
            let patient = one.is_put_off.then(|| quote!(.without_deadline()));
            quote! {
                #(#attributes)*
                #documentation
                #visibility fn #name(&self, #(#parameters),*) -> #ask {
                    #sending #patient
                }
            }
        });
        quote! {
            impl #declared #handle #arguments #bounds {
                #(#methods)*
            }
        }
    }

    /// A generic actor has no name before somebody says of what: `program().hosts::<Cache<u64>>()`.
    fn registration(&self) -> Option<TokenStream> {
        let self_ty = &self.block.self_ty;
        (!self.is_generic()).then(|| {
            quote! {
                ::hatchery::__private::inventory::submit! {
                    ::hatchery::__private::HostedActor::of::<#self_ty>()
                }
            }
        })
    }
}

impl Function {
    fn of(signature: &Signature, parameters: Vec<Parameter>) -> Function {
        Function {
            name: signature.ident.clone(),
            is_async: signature.asyncness.is_some(),
            parameters,
            result: match &signature.output {
                syn::ReturnType::Default => signature.ident.span(),
                syn::ReturnType::Type(_, ty) => ty.span(),
            },
        }
    }

    fn fields(&self) -> impl Iterator<Item = (&Ident, &Type)> {
        self.parameters.iter().filter_map(|parameter| match parameter {
            Parameter::Context | Parameter::Reply => None,
            Parameter::Field { name, ty } => Some((name, &**ty)),
        })
    }

    /// Names for the fields where the function is called, none of which is anybody else's.
    fn bindings(&self) -> impl Iterator<Item = Ident> {
        (0..self.fields().count()).map(|index| format_ident!("__arg{index}"))
    }

    /// The call, not yet waited for. `Self::` prefers what is written over the trait's method of the same name.
    fn call(&self, receiver: &TokenStream, is_send: bool) -> TokenStream {
        let name = &self.name;
        let mut bindings = self.bindings();
        let receiver = (!receiver.is_empty()).then(|| quote!(#receiver));
        let arguments = receiver.into_iter().chain(self.parameters.iter().map(|parameter| match parameter {
            Parameter::Context => quote!(__cx),
            Parameter::Reply => quote!(__reply),
            Parameter::Field { .. } => bindings.next().to_token_stream(),
        }));
        // One place for the call and what becomes of its future, so that a future that is not `Send` is told once.
        let at_name = shown_at(name.span());
        let call = quote_spanned!(at_name=> Self::#name(#(#arguments),*));
        if self.is_async && is_send {
            quote_spanned!(at_name=> must_be_send_unless_the_actor_says_not_send(#call))
        } else {
            call
        }
    }
}

impl Message {
    /// Unless one of the others has its name; of twins under a `#[cfg]`, one at most is there in the end.
    fn unlike(self, others: &[Message]) -> syn::Result<Message> {
        let is_conditional = |message: &Message| conditions(&message.attributes).next().is_some();
        let twin = others.iter().find(|other| other.variant == self.variant);
        let Some(twin) = twin.filter(|twin| !is_conditional(twin) && !is_conditional(&self)) else {
            return Ok(self);
        };
        let (this, other) = (&self.function.name, &twin.function.name);
        let why = if this == other {
            format!("the message `{this}` is there twice: rename one")
        } else {
            format!("`{other}` and `{this}` both make the message `{}`: rename one", self.variant)
        };
        Err(syn::Error::new_spanned(this, why))
    }

    fn arm(&self, message: &Ident, is_send: bool) -> TokenStream {
        let Message { function, variant, attributes, result, stream, is_put_off, is_cut, .. } = self;
        let conditions = conditions(attributes);
        let names: Vec<_> = function.fields().map(|(name, _)| name).collect();
        let bindings = function.bindings();
        let fields = (!names.is_empty()).then(|| quote!({ #(#names: #bindings),* }));
        // Here, where nothing holds on to what it was decoded from.
        let bytes = function.bindings().zip(function.fields()).filter(|(_, (_, ty))| is_bytes(ty));
        let bytes = bytes.map(|(binding, _)| quote!(let #binding = #binding.into_vec();));
        let bytes = quote!(#(#bytes)*);
        let at_result = shown_at(result.span());
        let answer = if *is_put_off {
            quote!({
                let () = __result;
                ::hatchery::__private::Answer::None
            })
        } else if let Some(stream) = stream {
            stream.answer(result)
        } else if is_result(result) {
            quote_spanned!(at_result=> ::hatchery::__private::Answer::result(__asked, &__result))
        } else if is_bytes(result) {
            quote!(::hatchery::__private::Answer::value(
                __asked,
                &::hatchery::__private::ByteString::from(__result),
            ))
        } else {
            quote_spanned!(at_result=> ::hatchery::__private::Answer::value(__asked, &__result))
        };
        let call = function.call(&quote!(self), is_send);
        let at_name = shown_at(function.name.span());
        let handled = if *is_cut {
            quote! {
                match __cx.while_awaited(#call).await {
                    ::core::result::Result::Ok(__result) => #answer,
                    ::core::result::Result::Err(__left) => __left,
                }
            }
        } else {
            let call = if function.is_async { quote_spanned!(at_name=> #call.await) } else { call };
            quote! {
                let __result = #call;
                #answer
            }
        };
        let handled = if *is_put_off {
            let encode = if is_result(result) {
                quote_spanned!(at_result=> ::hatchery::__private::Answer::result)
            } else if is_bytes(result) {
                quote!(|__asked, __value| ::hatchery::__private::Answer::value(
                    __asked,
                    &::hatchery::__private::ByteSlice(__value),
                ))
            } else {
                quote_spanned!(at_result=> ::hatchery::__private::Answer::value)
            };
            quote! {
                match ::hatchery::Reply::<#result>::new(__cx, __asked, #encode) {
                    ::core::result::Result::Ok(__reply) => { #handled }
                    ::core::result::Result::Err(__refused) => __refused,
                }
            }
        } else {
            handled
        };
        quote! {
            #(#conditions)*
            #message::#variant #fields => { #bytes #handled }
        }
    }

    /// What the handle's method returns.
    fn ask(&self) -> TokenStream {
        let result = &self.result;
        if let Some(Streamed { item, error }) = &self.stream {
            let error = error.as_ref().map(|error| quote!(, #error));
            return quote!(::hatchery::Items<#item #error>);
        }
        if !is_result(result) {
            return quote!(::hatchery::Ask<#result>);
        }
        if let Some((ok, err)) = result_parts(result) {
            return quote!(::hatchery::Ask<#ok, #err>);
        }
        quote! {
            ::hatchery::Ask<
                <#result as ::hatchery::__private::ResultParts>::Ok,
                <#result as ::hatchery::__private::ResultParts>::Err,
            >
        }
    }
}

/// Whether the actor's futures are `Send`.
fn read_options(options: &TokenStream) -> syn::Result<bool> {
    if options.is_empty() {
        return Ok(true);
    }
    if options.to_string() == "not_send" {
        return Ok(false);
    }
    Err(syn::Error::new_spanned(
        options,
        "an actor has one option: write `#[hatchery::actor(not_send)]` if its state or its handlers must stay on one \
         thread, or else `#[hatchery::actor]` alone",
    ))
}

/// Whether the message says `#[message(cancel)]`.
fn read_message_options(method: &ImplItemFn, refusals: &mut Refusals) -> bool {
    let mut is_cut = false;
    for attribute in method.attrs.iter().filter(|attribute| is_ours(attribute)) {
        let options = match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string(),
            _ => String::new(),
        };
        if options != "cancel" {
            refusals.at(
                attribute,
                "a message has one option: write `#[message(cancel)]` if its handler is to be dropped when its caller \
                 leaves, or leave this out",
            );
        } else if is_cut {
            refusals.at(attribute, "`#[message(cancel)]` is there twice: write it once");
        } else if method.sig.asyncness.is_none() {
            let name = &method.sig.ident;
            refusals.at(
                attribute,
                format!(
                    "a handler is dropped where it awaits, and `{name}` never does: write `async fn {name}`, or leave \
                     `#[message(cancel)]` out"
                ),
            );
        } else {
            is_cut = true;
        }
    }
    is_cut
}

fn read_start(method: &ImplItemFn, self_ty: &Type) -> syn::Result<Function> {
    let mut refusals = Refusals::default();
    refusals.of_signature(&method.sig, "`start`");
    if let Some(receiver) = method.sig.receiver() {
        refusals
            .at(receiver, "`start` makes the actor, there is no `self` yet: write `fn start(..) -> Self`");
    }
    if matches!(method.sig.output, syn::ReturnType::Default) {
        refusals.at(
            &method.sig.ident,
            "`start` makes the actor: write `fn start(..) -> Self` or `-> Result<Self, E>`",
        );
    }
    let (function, reply) = read_function(&method.sig, self_ty, &mut refusals);
    if reply.is_some() {
        refusals.at(
            &method.sig.inputs,
            "`start` answers whoever starts the actor by making it: leave the `Reply` out, and write `async fn start` \
             if it takes its time",
        );
    }
    refusals.of_many(&method.sig, function.fields().count());
    refusals.none_or(function)
}

fn read_stopped(method: &ImplItemFn) -> syn::Result<Function> {
    const SHAPE: &str = "write `async fn stopped(&mut self)`, with a `&Context` if it needs one";
    let mut refusals = Refusals::default();
    refusals.of_signature(&method.sig, "`stopped`");
    match method.sig.receiver() {
        Some(receiver) if is_borrowed(receiver) => {}
        _ => refusals.at(&method.sig.ident, format!("`stopped` is told when the actor stops: {SHAPE}")),
    }
    let mut parameters = Vec::new();
    for input in &method.sig.inputs {
        match input {
            FnArg::Receiver(_) => {}
            FnArg::Typed(parameter) if is_context(&parameter.ty) => parameters.push(Parameter::Context),
            FnArg::Typed(parameter) => {
                refusals.at(parameter, format!("nobody sends `stopped`, so it has no arguments: {SHAPE}"));
            }
        }
    }
    match &method.sig.output {
        syn::ReturnType::Default => {}
        syn::ReturnType::Type(_, ty) if matches!(&**ty, Type::Tuple(unit) if unit.elems.is_empty()) => {}
        syn::ReturnType::Type(_, ty) => {
            refusals.at(ty, format!("nobody hears what `stopped` returns: {SHAPE}"));
        }
    }
    refusals.none_or(Function::of(&method.sig, parameters))
}

fn read_message(method: &ImplItemFn, self_ty: &Type) -> syn::Result<Message> {
    let mut refusals = Refusals::default();
    let name = &method.sig.ident;
    let is_cut = read_message_options(method, &mut refusals);
    match method.sig.receiver() {
        None => refusals.at(
            name,
            format!(
                "every function here is a message, and `{name}` has no `self`: \
                 write `&mut self` or `&self`, or move it to an impl block of its own"
            ),
        ),
        Some(receiver) if !is_borrowed(receiver) => refusals.at(
            receiver,
            "a message does not use up its actor: write `&mut self` or `&self`, or move the function to an impl \
             block of its own",
        ),
        Some(_) => {}
    }
    refusals.of_signature(&method.sig, "a message");
    let (function, reply) = read_function(&method.sig, self_ty, &mut refusals);
    let is_put_off = reply.is_some();
    let returned = result_of(&method.sig);
    if is_put_off && !matches!(peeled(&returned), Type::Tuple(unit) if unit.elems.is_empty()) {
        refusals.at(
            &returned,
            format!(
                "the `Reply` answers, so what `{name}` returns reaches nobody: leave the result out, or leave the \
                 `Reply` out"
            ),
        );
    }
    let result = without_self(reply.as_ref().unwrap_or(&returned), self_ty);
    let stream = if is_put_off { Some(None) } else { refusals.unless(streamed(&result)) };
    match &stream {
        Some(Some(stream)) => refusals.of_result(&stream.item),
        Some(None) => refusals.of_result(&result),
        // It was refused.
        None => {}
    }
    refusals.none_or(Message {
        variant: variant_of(name),
        function,
        visibility: method.vis.clone(),
        attributes: method.attrs.iter().filter(|attribute| is_shared(attribute)).cloned().collect(),
        result,
        stream: stream.flatten(),
        is_put_off,
        is_cut,
    })
}

/// What the dispatch must know of a function, and what its `Reply` is of, if it has one.
fn read_function(signature: &Signature, self_ty: &Type, refusals: &mut Refusals) -> (Function, Option<Type>) {
    let is_taken = |name: &Ident| {
        signature
            .inputs
            .iter()
            .any(|input| matches!(input, FnArg::Typed(parameter) if bound_name(&parameter.pat) == Some(name)))
    };
    let mut parameters = Vec::new();
    let mut reply = None;
    for input in &signature.inputs {
        let FnArg::Typed(parameter) = input else { continue };
        if is_context(&parameter.ty) {
            if matches!(peeled(&parameter.ty), Type::Reference(context) if context.mutability.is_some()) {
                refusals.at(&parameter.ty, "a context is only ever looked at: write `&Context`");
            }
            parameters.push(Parameter::Context);
            continue;
        }
        if let Some(answer) = answered_by(&parameter.ty) {
            let Some(answer) = answer else {
                refusals.at(&parameter.ty, "a reply is of what the caller gets: write `Reply<T>`");
                continue;
            };
            if reply.is_some() {
                refusals.at(parameter, "a request has one answer: write one `Reply`");
            }
            reply.get_or_insert_with(|| answer.clone());
            parameters.push(Parameter::Reply);
            continue;
        }
        refusals.of_parameter(&parameter.ty);
        let ty = without_self(&parameter.ty, self_ty);
        let name = bound_name(&parameter.pat).cloned().unwrap_or_else(|| {
            let mut name = format_ident!("arg{}", parameters.len());
            while is_taken(&name) {
                name = format_ident!("{name}_");
            }
            name
        });
        parameters.push(Parameter::Field { name, ty: Box::new(ty) });
    }
    (Function::of(signature, parameters), reply)
}

/// `&self` and `&mut self`, without a lifetime of its own.
fn is_borrowed(receiver: &Receiver) -> bool {
    matches!(&*receiver.ty, Type::Reference(reference) if reference.lifetime.is_none())
}

/// What a method and its twin on the handle have in common.
fn is_shared(attribute: &Attribute) -> bool {
    ["doc", "cfg", "deprecated"].iter().any(|name| attribute.path().is_ident(name))
}

/// `#[message(..)]`, which means something to this macro only.
fn is_ours(attribute: &Attribute) -> bool {
    last_name(attribute.path()).as_deref() == Some("message")
}

/// The `#[cfg]`s of an item, which all that is generated from it shares.
fn conditions(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"))
}

/// `add_many` becomes `AddMany`.
fn variant_of(method: &Ident) -> Ident {
    let mut name = String::new();
    for word in method.unraw().to_string().split('_') {
        let mut letters = word.chars();
        name.extend(letters.next().map(|first| first.to_uppercase().to_string()));
        name.push_str(letters.as_str());
    }
    if name.is_empty() || name == "Self" || name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    Ident::new(&name, shown_at(method.span()))
}

/// The type with the actor's for `Self`, which means something else in the messages and the handle.
fn without_self(ty: &Type, self_ty: &Type) -> Type {
    fn replaced(tokens: TokenStream, self_ty: &Type) -> TokenStream {
        let mut replaced_tokens = TokenStream::new();
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) if ident == "Self" => {
                    let is_path =
                        matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
                    replaced_tokens.extend(if is_path { quote!(<#self_ty>) } else { quote!(#self_ty) });
                }
                TokenTree::Group(group) => {
                    let mut inner =
                        proc_macro2::Group::new(group.delimiter(), replaced(group.stream(), self_ty));
                    inner.set_span(group.span());
                    replaced_tokens.extend([TokenTree::Group(inner)]);
                }
                other => replaced_tokens.extend([other]),
            }
        }
        replaced_tokens
    }
    // A type that no longer parses is left as it was for rustc to judge.
    syn::parse2(replaced(ty.to_token_stream(), self_ty)).unwrap_or_else(|_| ty.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::travel::{assert_contains, file_without_spaces, messages_of, tokens, without_spaces};

    fn expanded(item: &str) -> String {
        file_without_spaces(expand(TokenStream::new(), tokens(item)))
    }

    fn refusal(item: &str) -> String {
        messages_of(
            Actor::read(&TokenStream::new(), tokens(item)).and_then(|(_, refusals)| refusals.none_or(())),
        )
    }

    #[test]
    fn a_method_becomes_a_message_and_a_method_of_the_handle() {
        let text = expanded(
            "impl Counter {
                fn start(total: u64) -> Self { Counter { total } }
                #[doc = \"Adds.\"]
                pub(crate) async fn add(&mut self, n: u64) -> u64 { self.total += n; self.total }
                fn get(&self) -> u64 { self.total }
            }",
        );
        assert_contains(&text, "pub enum __CounterMessage { Add { n: u64 }, Get }");
        assert_contains(&text, "type Args = u64;");
        assert_contains(
            &text,
            "__CounterMessage::Add { n: __arg0 } => {
                let __result = must_be_send_unless_the_actor_says_not_send(Self::add(self, __arg0)).await;
                ::hatchery::__private::Answer::value(__asked, &__result)
            }
            __CounterMessage::Get => {
                let __result = Self::get(self);",
        );
        assert_contains(
            &text,
            "#[doc = \"Adds.\"]
            pub(crate) fn add(&self, n: u64) -> ::hatchery::Ask<u64> {
                self.0.ask(\"add\", &__CounterMessage::Add { n })
            }",
        );
        assert_contains(
            &text,
            "fn get(&self,) -> ::hatchery::Ask<u64> { self.0.ask(\"get\", &__CounterMessage::Get) }",
        );
        assert_contains(&text, "HostedActor::of::<Counter>()");
    }

    #[test]
    fn a_context_is_filled_in_and_does_not_travel() {
        let text = expanded(
            "impl Counter {
                async fn start(a: u8, cx: &Context, b: String) -> hatchery::Result<Self> { go() }
                fn add(&mut self, cx: &hatchery::Context, n: u64) {}
                async fn stopped(&mut self, cx: &Context) {}
            }",
        );
        assert_contains(&text, "type Args = (u8, String);");
        assert_contains(&text, "let (__arg0, __arg1) = __args;");
        assert_contains(&text, "Self::start(__arg0, __cx, __arg1)");
        assert_contains(&text, "Add { n: u64 }");
        assert_contains(&text, "Self::add(self, __cx, __arg0)");
        assert_contains(&text, "Self::stopped(self, __cx)");
        assert!(!text.contains("Stopped"), "{text}");
    }

    #[test]
    fn a_result_is_split() {
        let text = expanded(
            "impl Store {
                fn start() -> Self { Store }
                fn put(&mut self) -> Result<u64, Full> { go() }
                fn get(&self) -> hatchery::Result<u64> { go() }
                fn peek(&self) -> Option<u64> { None }
            }",
        );
        assert_contains(&text, "type Args = ();");
        assert_contains(&text, "fn put(&self,) -> ::hatchery::Ask<u64, Full>");
        assert_contains(&text, "<hatchery::Result<u64> as ::hatchery::__private::ResultParts>::Ok,");
        assert_contains(&text, "<hatchery::Result<u64> as ::hatchery::__private::ResultParts>::Err,");
        assert_contains(&text, "fn peek(&self,) -> ::hatchery::Ask<Option<u64>>");
        assert_eq!(text.matches("Answer::result").count(), 2);
        assert_eq!(text.matches("Answer::value").count(), 1);
    }

    #[test]
    fn a_stream_becomes_items() {
        let text = expanded(
            "impl<K: Key> Store<K> {
                fn start() -> Self { Store }
                fn keys(&self, from: u64) -> impl Stream<Item = K> { go() }
                async fn rows(&mut self) -> Result<impl Stream<Item = Vec<u8>>, Full> { go() }
            }",
        );
        assert_contains(
            &text,
            "fn keys(&self, from: u64) -> impl Stream<Item = K> + use<K> + ::core::marker::Send + 'static { go() }",
        );
        assert_contains(
            &text,
            "fn keys(&self, from: u64) -> ::hatchery::Items<K> {
                self.0.items(\"keys\", &__StoreMessage::<K>::Keys { from }, |__body| {
                    use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                    (&::hatchery::__private::Decoding::<K>::new()).decoded(__body)
                })
            }",
        );
        assert_contains(&text, "begin_stream(__cx, __asked, __result, |__item: &K| {");
        assert_contains(
            &text,
            "fn rows(&self,) -> ::hatchery::Items<
                Vec<u8>, <Result<(), Full> as ::hatchery::__private::ResultParts>::Err
            > {",
        );
        assert_contains(&text, "::hatchery::__private::take_bytes)");
        assert_contains(&text, "Err(__error) => ::hatchery::__private::Answer::result::<(), _>");
    }

    #[test]
    fn byte_vectors_travel_as_byte_strings() {
        let text = expanded(
            "impl Store {
                fn start() -> Self { Store }
                fn put(&mut self, image: Vec<u8>) -> Vec<u8> { image }
            }",
        );
        assert_contains(&text, "Put { image: ::hatchery::__private::ByteString }");
        assert_contains(&text, "fn put(&self, image: Vec<u8>) -> ::hatchery::Ask<Vec<u8>>");
        assert_contains(&text, "let __arg0 = __arg0.into_vec();");
        assert_contains(&text, "ByteString::from(__result)");
    }

    #[test]
    fn a_generic_actor_is_registered_by_hand() {
        let text = expanded(
            "impl<K: Key, const N: usize> Cache<K, N> where K: Hash {
                fn start() -> Self { Cache::new() }
                fn get(&self, key: K) -> bool { true }
            }",
        );
        assert_contains(&text, "pub struct CacheHandle<K, const N: usize>");
        assert_contains(&text, "pub enum __CacheMessage<K: Key, const N: usize> where K: Hash");
        assert_contains(&text, "__CacheMessage::<K, N>::Get { key }");
        assert_contains(&text, "type_name::<Self>");
        assert!(!text.contains("inventory"), "{text}");
    }

    #[test]
    fn patterns_and_self_get_names_that_mean_the_same_elsewhere() {
        let text = expanded(
            "impl Point {
                fn start() -> Self { Point }
                fn mv(&mut self, (x, y): (i8, i8), mut z: i8, _: [u8; Self::N]) -> Self { go() }
            }",
        );
        assert_contains(&text, "Mv { arg0: (i8, i8), z: i8, arg2: [u8; <Point>::N] }");
        assert_contains(&text, "-> ::hatchery::Ask<Point>");
    }

    #[test]
    fn conditions_reach_all_that_is_generated() {
        let text = expanded(
            "#[cfg(unix)]
            impl Point {
                const N: usize = 1;
                fn start() -> Self { Point }
                #[cfg(feature = \"x\")] #[tracing::instrument] #[deprecated]
                fn mv(&mut self) {}
                #[cfg(windows)]
                fn stopped(&mut self) {}
            }",
        );
        assert_contains(
            &text,
            "#[cfg(windows)] fn stopped(&mut self, __cx: &::hatchery::__private::Context,)",
        );
        // The block, the handle, its six impls, and all the rest in one.
        assert_eq!(text.matches("#[cfg(unix)]").count(), 9, "{text}");
        // The method, the variant, the arm, the handle's method.
        assert_eq!(text.matches("#[cfg(feature=\"x\")]").count(), 4, "{text}");
        assert_eq!(text.matches("tracing").count(), 1, "{text}");
        assert_eq!(text.matches("#[deprecated]").count(), 2, "{text}");
    }

    #[test]
    fn every_mistake_says_what_to_write() {
        for (item, why) in [
            ("impl A {}", "an actor needs `fn start(..) -> Self`"),
            ("impl A { fn start(&self) -> Self { A } }", "there is no `self` yet"),
            ("impl A { fn start() {} }", "write `fn start(..) -> Self`"),
            ("impl A { fn start(x: &str) -> Self { A } }", "write `String` instead of `&str`"),
            ("impl A { fn start(reply: Reply<u8>) -> Self { A } }", "leave the `Reply` out"),
            ("impl A { #[message(cancel)] async fn start() -> Self { A } }", "`start` is no message"),
            ("impl A { fn start<T>(x: T) -> Self { A } }", "`start` cannot be generic"),
            ("impl A { fn start() -> Self { A } fn start() -> Self { A } }", "`start` is there twice"),
            ("impl Trait for A { fn start() -> Self { A } }", "write `impl A { .. }`"),
            ("impl<'a> A<'a> { fn start() -> Self { A } }", "cannot borrow: write owned types"),
            ("impl (A, B) { fn start() -> Self { A } }", "a struct or an enum"),
            ("struct A;", "write `#[hatchery::actor] impl Name { .. }`"),
        ] {
            assert_refusal(item, why);
        }
        for (method, why) in [
            ("fn f() {}", "`f` has no `self`"),
            ("fn f(self) {}", "does not use up its actor"),
            ("fn f(self: Box<Self>) {}", "does not use up its actor"),
            ("fn f<T>(&self, x: T) {}", "write what `T` stands for"),
            ("fn f(&self, x: impl Into<u8>) {}", "write the type itself"),
            ("fn f(&self, x: &[u64]) {}", "write `Vec<u64>`"),
            ("fn f(&self) -> &str { g() }", "write `String`"),
            ("fn f(&self) -> impl Iterator<Item = u8> { g() }", "write the type itself"),
            ("fn f(&self) -> impl Stream { g() }", "write `impl Stream<Item = T>`"),
            ("fn f(&self) -> impl Stream<Item = &str> { g() }", "write `String`"),
            ("fn f(&self) -> impl Stream<Item = u8> + '_ { g() }", "cannot borrow from it"),
            ("unsafe fn f(&self) {}", "cannot be `unsafe`"),
            ("fn f(&self) {} fn f(&mut self) {}", "`f` is there twice"),
            ("fn foo_bar(&self) {} fn fooBar(&self) {}", "both make the message `FooBar`"),
            ("fn f(&self, reply: Reply<u8>) -> u8 { 1 }", "leave the result out, or leave the `Reply` out"),
            ("fn f(&self, a: Reply<u8>, b: Reply<u8>) {}", "write one `Reply`"),
            ("fn f(&self, reply: Reply) {}", "write `Reply<T>`"),
            ("fn f(&self, reply: &Reply<u8>) {}", "write `Reply<u8>` instead of `&Reply<u8>`"),
            ("fn f(&self, reply: Reply<&str>) {}", "write `String` instead of `&str`"),
            ("fn f(&self, cx: &mut Context) {}", "write `&Context`"),
            ("#[message(cancel)] fn f(&self) {}", "write `async fn f`"),
            ("#[message(abort)] async fn f(&self) {}", "write `#[message(cancel)]` if"),
            ("#[message(cancel, cancel)] async fn f(&self) {}", "a message has one option"),
            ("#[message(cancel)] #[message(cancel)] async fn f(&self) {}", "there twice: write it once"),
            ("#[message] async fn f(&self) {}", "write `#[message(cancel)]` if"),
            ("#[message(cancel)] async fn stopped(&mut self) {}", "`stopped` is no message: leave this out"),
            ("fn stopped(self) {}", "write `async fn stopped(&mut self)`"),
            ("fn stopped(&mut self, x: u8) {}", "no arguments"),
            ("fn stopped(&mut self) -> u8 { 1 }", "nobody hears"),
        ] {
            assert_refusal(&format!("impl A {{ fn start() -> Self {{ A }} {method} }}"), why);
        }
    }

    #[track_caller]
    fn assert_refusal(item: &str, why: &str) {
        let refusal = refusal(item);
        assert!(refusal.contains(why), "{item}: {refusal:?} does not say {why:?}");
        assert!(!refusal.starts_with(char::is_uppercase), "{refusal:?}");
    }

    #[test]
    fn what_is_not_refused_is_there_nonetheless() {
        let item = "impl A { fn start() -> Self { A } fn good(&self) {} #[message(cancel)] fn bad(&self, x: &str) {} }";
        assert_eq!(refusal(item).lines().count(), 2);
        let text = without_spaces(&expand(TokenStream::new(), tokens(item)).to_string());
        assert_eq!(text.matches("compile_error!").count(), 2, "{text}");
        assert_contains(
            &text,
            "impl A { fn start() -> Self { A } fn good(&self) {} fn bad(&self, x: &str) {} }",
        );
        assert_contains(&text, "pub enum __AMessage { Good }");
    }

    #[test]
    fn names_that_patterns_get_are_nobody_elses() {
        assert_contains(
            &expanded("impl A { fn start() -> Self { A } fn f(&self, arg1: u8, (a, b): (u8, u8)) {} }"),
            "F { arg1: u8, arg1_: (u8, u8) }",
        );
    }

    #[test]
    fn unknown_options_are_refused_beside_the_block() {
        let item = tokens("impl A { fn start() -> Self { A } }");
        for options in [quote!(send), quote!(not_send, not_send), quote!(not_send = true)] {
            let text = expand(options, item.clone()).to_string();
            assert!(text.contains("write `#[hatchery::actor(not_send)]` if"), "{text}");
            assert!(text.ends_with(&item.to_string()), "{text}");
        }
    }

    #[test]
    fn an_actor_that_is_not_send_may_have_futures_that_are_not() {
        let item = "impl A { async fn start() -> Self { A } async fn f(&mut self) {} async fn stopped(&mut self) {} }";
        let text = file_without_spaces(expand(quote!(not_send), tokens(item)));
        assert_contains(&text, "impl ::hatchery::__private::AnyActor for A");
        assert_contains(&text, "let __result = Self::f(self).await;");
        assert!(
            !text.contains("must_be_send_unless_the_actor_says_not_send") && !text.contains("marker::Send"),
            "{text}"
        );
    }

    #[test]
    fn a_reply_puts_the_answer_off() {
        let text = expanded(
            "impl Lock {
                fn start() -> Self { Lock }
                fn acquire(&mut self, who: String, reply: Reply<Token>) {}
                async fn checked(&mut self, reply: hatchery::Reply<Result<u8, Full>>, cx: &Context) -> () {}
                fn bytes(&mut self, reply: Reply<Vec<u8>>) {}
                fn own(&mut self, reply: Reply<Self>) {}
            }",
        );
        assert_contains(&text, "Acquire { who: String }, Checked, Bytes, Own");
        assert_contains(
            &text,
            "__LockMessage::Acquire { who: __arg0 } => {
                match ::hatchery::Reply::<Token>::new(__cx, __asked, ::hatchery::__private::Answer::value) {
                    ::core::result::Result::Ok(__reply) => {
                        let __result = Self::acquire(self, __arg0, __reply);
                        { let () = __result; ::hatchery::__private::Answer::None }
                    }
                    ::core::result::Result::Err(__refused) => __refused,
                }
            }",
        );
        assert_contains(
            &text,
            "must_be_send_unless_the_actor_says_not_send(Self::checked(self, __reply, __cx)).await",
        );
        assert_contains(&text, "new(__cx, __asked, ::hatchery::__private::Answer::result)");
        assert_contains(&text, "&::hatchery::__private::ByteSlice(__value)");
        assert_contains(
            &text,
            "fn acquire(&self, who: String) -> ::hatchery::Ask<Token> {
                self.0.ask(\"acquire\", &__LockMessage::Acquire { who }).without_deadline()
            }",
        );
        assert_contains(&text, "fn checked(&self,) -> ::hatchery::Ask<u8, Full>");
        assert_contains(&text, "take_bytes).without_deadline()");
        assert_contains(&text, "fn own(&self,) -> ::hatchery::Ask<Lock>");
    }

    #[test]
    fn a_message_may_be_dropped_with_its_caller() {
        let text = expanded(
            "impl A {
                fn start() -> Self { A }
                #[message(cancel)]
                async fn fetch(&mut self, url: String) -> u8 { 1 }
            }",
        );
        assert_contains(
            &text,
            "match __cx.while_awaited(must_be_send_unless_the_actor_says_not_send(Self::fetch(self, __arg0))).await {
                ::core::result::Result::Ok(__result) => ::hatchery::__private::Answer::value(__asked, &__result),
                ::core::result::Result::Err(__left) => __left,
            }",
        );
        assert!(!text.contains("message("), "{text}");
    }

    #[test]
    fn variants_are_named_in_camel_case() {
        for (method, variant) in [
            ("add", "Add"),
            ("add_many", "AddMany"),
            ("_x", "X"),
            ("r#move", "Move"),
            ("self_", "_Self"),
            ("_1", "_1"),
        ] {
            assert_eq!(variant_of(&syn::parse_str(method).unwrap()), variant);
        }
    }
}
